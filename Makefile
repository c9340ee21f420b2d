# Every target sets up its own environment in .venv; nothing else is needed than Python >= 3.10 with pip.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
SPACE := .venv-space
SPACE_STAMP := $(SPACE)/.installed
STUDIES := few-steps noise-ratio projection guidance prior truncation one-step

.PHONY: demo test test-all test-space style docs bench bench-space bench-ablations bench-coupling bench-gap bench-images \
	bench-pictures bench-scale bench-strangers bench-training bench-upscale $(STUDIES:%=bench-%)

$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[training,evaluation,test]"
	# Its matchers check our baselines in the tests; the rest of what it asks for they do not import
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt torchcfm POT
	touch $(STAMP)

# DeepSpeed is built here and compiles with g++ as it runs; where it cannot be had, its tests say so and are skipped
$(VENV)/.deepspeed: $(STAMP) constraints.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check setuptools wheel
	DS_BUILD_OPS=0 $(RUN) -m pip install --quiet --disable-pip-version-check --no-build-isolation --constraint constraints.txt deepspeed \
		|| echo "DeepSpeed could not be installed."
	touch $@

# gradio does not take the versions of constraints.txt
$(SPACE_STAMP): setup.py examples/space/requirements.txt
	$(PYTHON) -m venv $(SPACE)
	$(SPACE)/bin/python -m pip install --quiet --disable-pip-version-check --editable . \
		--requirement examples/space/requirements.txt playwright==1.65.2 pytest==9.2.0
	touch $(SPACE_STAMP)

demo: $(STAMP)
	$(RUN) examples/demo.py --output out/demo.png

# A process for each core, with one thread
WORKERS = --numprocesses auto --dist worksteal

test: $(STAMP)
	$(RUN) -m pytest -q $(WORKERS) -m "not slow"

test-all: $(VENV)/.deepspeed
	$(RUN) -m pytest -q $(WORKERS)

# In a real browser where there is a Chromium (Debian: apt-get install chromium); without one it says so and skips
test-space: $(SPACE_STAMP)
	$(SPACE)/bin/python -m pytest -q tests/examples/test_space.py

docs: $(STAMP)
	$(RUN) -m pdoc --docformat google --output-directory out/docs diffusers_lowfreq diffusers_lowfreq.autoencoding \
		diffusers_lowfreq.couplings diffusers_lowfreq.evaluation diffusers_lowfreq.models diffusers_lowfreq.modular \
		diffusers_lowfreq.objectives diffusers_lowfreq.stock diffusers_lowfreq.text_encoding diffusers_lowfreq.training

style: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(STAMP)
	$(RUN) benchmarks/overhead.py --output benchmarks/results/overhead.json
	$(RUN) benchmarks/report.py --results benchmarks/results/overhead.json docs/one-step.md docs/stock-pipelines.md

bench-scale: $(STAMP)
	$(RUN) benchmarks/scale.py --output benchmarks/results/scale.json
	$(RUN) benchmarks/report.py --results benchmarks/results/scale.json docs/scale.md

bench-training: $(STAMP)
	$(RUN) benchmarks/training_speed.py --output benchmarks/results/training-speed.json
	$(RUN) benchmarks/report.py --results benchmarks/results/training-speed.json docs/training.md

bench-images: $(STAMP)
	$(RUN) benchmarks/image_sets.py --output benchmarks/results/image-sets.json
	$(RUN) benchmarks/report.py --results benchmarks/results/image-sets.json docs/training.md

bench-space: $(SPACE_STAMP)
	$(SPACE)/bin/python benchmarks/space.py --output benchmarks/results/space.json --screenshot docs/figures/space.png

# The studies: CIFAR-10 as parquet files, or folders of images; TIER is a key of benchmarks/tiers.json. They go on where they stopped.
EVIDENCE = docs/evidence.md $(wildcard docs/evidence/*.md)
TIER ?= cpu
TRAIN_DATA ?= cifar10/train.parquet
TEST_DATA ?= cifar10/test.parquet

VAE ?= checkpoints/cifar10-32

$(STUDIES:%=bench-%): bench-%: $(STAMP)
	$(RUN) benchmarks/run_study.py --study $* --tier $(TIER) --train_data $(TRAIN_DATA) --test_data $(TEST_DATA) --vae $(VAE)
	$(RUN) benchmarks/report.py --results benchmarks/results/$*-$(TIER).json --figures_dir docs/figures README.md $(EVIDENCE)

bench-ablations: bench-noise-ratio bench-projection

bench-gap: bench-prior bench-truncation

bench-strangers: $(STAMP)
	$(RUN) benchmarks/strangers.py --tier $(TIER) --train_data $(TRAIN_DATA) --test_data $(TEST_DATA)
	$(RUN) benchmarks/report.py --results benchmarks/results/strangers-$(TIER).json $(EVIDENCE)

COUPLING = $(RUN) benchmarks/coupling.py --data $(TRAIN_DATA) --output benchmarks/results/coupling
bench-coupling: $(STAMP)
	$(COUPLING)-pixels.json --num_pairs 1000
	$(COUPLING)-pixels.json --num_pairs 10000 --factor 4 --noise_ratio 0.5 --operators bicubic area dct pca
	$(COUPLING)-pixels.json --num_pairs 10000 --factor 4 --noise_ratio 0.6 0.7 0.8 --operators bicubic
	$(COUPLING)-latents.json --vae $(VAE) --num_pairs 1000 --factor 2 4
	$(COUPLING)-latents.json --vae $(VAE) --num_pairs 10000 --factor 2 --noise_ratio 0.5 --operators bicubic
	for space in pixels latents; do \
		$(RUN) benchmarks/report.py --results benchmarks/results/coupling-$$space.json --figures_dir docs/figures $(EVIDENCE) || exit 1; \
	done

bench-pictures: $(STAMP)
	$(RUN) benchmarks/toy.py --output docs/figures/toy.png
	$(RUN) benchmarks/trajectories.py --study few-steps --tier $(TIER) --train_data $(TRAIN_DATA) \
		--output docs/figures/trajectories-$(TIER).png --runs "Gaussian, independent" "Gaussian, minibatch OT" \
		"low-frequency (α = 0.5)" "low-frequency (α = 0.25)"

UPSCALE = --pipeline checkpoints/cifar10-32 --data $(TEST_DATA) --split test --output benchmarks/results
bench-upscale: $(STAMP)
	$(RUN) benchmarks/degraded_latents.py $(UPSCALE)/degraded-latents.json
	$(RUN) benchmarks/upscale.py $(UPSCALE)/upscale.json --lora checkpoints/cifar10-32-upscale \
		--grader checkpoints/graders/cifar10-32 checkpoints/graders/cifar10-32-seed-1 --figure docs/figures/upscale.png
	for name in degraded-latents upscale; do \
		$(RUN) benchmarks/report.py --results benchmarks/results/$$name.json docs/upscaling.md checkpoints/cifar10-32-upscale/README.md || exit 1; \
	done
