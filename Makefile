export PYTHONPATH := scripts
MAKEFLAGS += --no-print-directory
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -W ignore -m monai.bundle run
DEMO := demo
LABEL := .venv-label

.PHONY: bundle demo notebook test test-slow test-label lint docs clean

.venv/installed: requirements.txt requirements-export.txt requirements-dicom.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	touch $@

demo: .venv/installed
	rm -rf $(DEMO)
	$(BIN)/python -m digar phantoms $(DEMO)/task --training 60 --test 8
	$(RUN) pretraining --config_file "['configs/pretrain.yaml','configs/demo.json']" --dataset_dir $(DEMO)/task \
		--task configs/demo_task.yaml --output_dir $(DEMO)/pretraining --cache_dir $(DEMO)/cache
	$(RUN) training --config_file "['configs/train.json','configs/demo.json']" --dataset_dir $(DEMO)/task \
		--pretrained $(DEMO)/pretraining/pretrained.pt --output_dir $(DEMO)/training --weights_file $(DEMO)/model.pt \
		--val_interval 10
	$(RUN) --config_file "['configs/train.json','configs/evaluate.json']" --dataset_dir $(DEMO)/task \
		--output_dir $(DEMO)/evaluation --weights_file $(DEMO)/model.pt
	$(RUN) --config_file configs/inference.json --dataset_dir $(DEMO)/task/imagesTs \
		--output_dir $(DEMO)/masks --weights_file $(DEMO)/model.pt
	$(BIN)/python -m digar compare $(DEMO)/masks $(DEMO)/task/labelsTs --images $(DEMO)/task/imagesTs -o $(DEMO)/scores

test: .venv/installed
	$(BIN)/python -m pytest -q

test-slow: .venv/installed
	$(BIN)/python -m pytest -q -m slow

# MONAI Label's dependencies do not go together with the bundle's own: docs/monailabel.md
$(LABEL)/installed: requirements.txt apps/digar/requirements.txt apps/digar/requirements-no-deps.txt
	$(PYTHON) -m venv $(LABEL)
	$(LABEL)/bin/python -m pip install --quiet -r apps/digar/requirements.txt pytest
	$(LABEL)/bin/python -m pip install --quiet --no-deps -r apps/digar/requirements-no-deps.txt
	$(LABEL)/bin/python tests/label/torchvision_beside_cpu.py
	touch $@

test-label: $(LABEL)/installed
	$(LABEL)/bin/python -m pytest -q -m label tests/label

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/installed  # into site/; a broken link or reference is an error
	$(BIN)/mkdocs build --strict --quiet

bundle:
	$(PYTHON) scripts/release.py

notebook: .venv/installed  # runs docs/quickstart.ipynb and stores what it shows
	$(BIN)/python -c "import nbclient, nbformat; book = nbformat.read('docs/quickstart.ipynb', 4); \
		nbclient.NotebookClient(book, timeout=None, record_timing=False).execute(); \
		nbformat.write(book, 'docs/quickstart.ipynb')"

clean:
	rm -rf .venv $(LABEL) $(DEMO) runs site
