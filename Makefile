MAKEFLAGS += --no-print-directory
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -W ignore -m monai.bundle run
DEMO := demo

.PHONY: demo test test-slow lint clean

.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	touch $@

demo: .venv/installed
	rm -rf $(DEMO)
	$(BIN)/python -m scripts.data.phantoms $(DEMO)/task --training 60 --test 8
	$(RUN) pretraining --config_file "['configs/pretrain.yaml','configs/demo.json']" --dataset_dir $(DEMO)/task \
		--output_dir $(DEMO)/pretraining --cache_dir $(DEMO)/cache --max_epochs 10
	$(RUN) training --config_file "['configs/train.json','configs/demo.json']" --dataset_dir $(DEMO)/task \
		--output_dir $(DEMO)/training --weights_file $(DEMO)/model.pt \
		--pretrained $(DEMO)/pretraining/pretrained.pt --max_epochs 40 --val_interval 10
	$(RUN) --config_file "['configs/train.json','configs/evaluate.json','configs/demo.json']" --dataset_dir $(DEMO)/task \
		--output_dir $(DEMO)/evaluation --weights_file $(DEMO)/model.pt
	$(RUN) --config_file "['configs/inference.json','configs/demo.json']" --dataset_dir $(DEMO)/task/imagesTs \
		--output_dir $(DEMO)/masks --weights_file $(DEMO)/model.pt
	$(BIN)/python -m scripts.report.compare --masks $(DEMO)/masks --labels $(DEMO)/task/labelsTs \
		--images $(DEMO)/task/imagesTs --picture $(DEMO)/pictures.png

test: .venv/installed
	$(BIN)/python -m pytest -q

test-slow: .venv/installed
	$(BIN)/python -m pytest -q -m slow

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

clean:
	rm -rf .venv $(DEMO) runs
