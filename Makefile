export PYTHONPATH := scripts
export GOMP_SPINCOUNT ?= 1000  # docs/scaling.md: threads that spin waste a busy machine's cores
MAKEFLAGS += --no-print-directory
PYTHON ?= python3
BIN := .venv/bin
DIGAR := $(BIN)/python -W ignore -m digar
QUICK := --set batch_size=2 --set learning_rate=0.001
DEMO := demo
LABEL := .venv-label

.PHONY: bundle demo notebook test test-slow test-label lint docs clean

.venv/installed: requirements.txt requirements-export.txt requirements-dicom.txt requirements-hub.txt requirements-openvino.txt requirements-remote.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	touch $@

demo: .venv/installed
	rm -rf $(DEMO)
	$(DIGAR) phantoms $(DEMO)/task --training 60 --test 8
	$(DIGAR) pretrain $(DEMO)/task -o $(DEMO)/pretraining --task configs/demo_task.yaml $(QUICK)
	$(DIGAR) train $(DEMO)/task -o $(DEMO)/model --task configs/demo_task.yaml $(QUICK) --set flip_probability=0.5 \
		--pretrained $(DEMO)/pretraining/pretrained.pt --set max_epochs=30 --set val_interval=10
	$(DIGAR) evaluate $(DEMO)/task -m $(DEMO)/model -o $(DEMO)/evaluation
	$(DIGAR) predict $(DEMO)/task/imagesTs -m $(DEMO)/model -o $(DEMO)/masks
	$(DIGAR) compare $(DEMO)/masks $(DEMO)/task/labelsTs --images $(DEMO)/task/imagesTs -o $(DEMO)/scores \
		--task $(DEMO)/model/task.yaml

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

bundle: .venv/installed
	$(BIN)/python scripts/release.py

notebook: .venv/installed  # runs docs/quickstart.ipynb and stores what it shows
	$(BIN)/python -c "import nbclient, nbformat; book = nbformat.read('docs/quickstart.ipynb', 4); \
		nbclient.NotebookClient(book, timeout=None, record_timing=False, \
		resources={'metadata': {'path': 'docs'}}).execute(); \
		nbformat.write(book, 'docs/quickstart.ipynb')"

clean:
	rm -rf .venv $(LABEL) $(DEMO) runs site
