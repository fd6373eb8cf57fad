# make demo    the whole pipeline on generated data, from an empty folder to a report
# make test    the tests
# make check   lint, format, types and tests: what has to pass before a commit
# make slow    the tests that take more than ten seconds each
# make faults  the tests of the fault catalogue, slow ones too, and a table of how each case ended
# make faults-long  more than 10,000 made-up and damaged inputs, 250 kills; an hour or more
#
# Each creates .venv and installs into it first, once. Needs Python 3.10 or newer with venv and
# pip, no GPU. Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check --quiet

# Two processes, each with whole files, so that what a file sets up is set up once.
PYTEST = $(PY) -m pytest --numprocesses 2 --dist loadfile

# Runs one script with the environment's Python: the command before it, its duration after it.
STEP = @bash -ec 'printf "\n$$ python %s\n" "$$*"; "$$0" "$$@"; echo "(took $$SECONDS s)"' $(PY)

.PHONY: help demo test check slow faults faults-long
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# A second call keeps the trained model; a model of other data in outputs/ is never replaced.
demo: $(VENV)/.installed
	$(STEP) phase1_training/make_demo_data.py
	$(STEP) phase1_training/check_data.py
	$(STEP) phase1_training/train.py $(if $(wildcard $(or $(OUTPUTS_DIR),outputs)/models/last.pth),--resume)
	$(STEP) phase2_optimization/benchmark_inference.py --batch-sizes 1,2,4 --num-iterations 10
	$(STEP) phase2_optimization/mixed_precision.py
	$(STEP) phase2_optimization/gpu_profiler.py
	$(STEP) phase3_tracking/video_detector.py
	$(STEP) phase3_tracking/evaluate_tracking.py
	$(STEP) phase4_deployment/export_all.py
	$(STEP) -m common.report
	@printf '\nOpen $(or $(OUTPUTS_DIR),outputs)/metrics/report.html in a browser.\n'

# $(call tests,OPTIONS): the notebooks promise a time and run with nothing beside them.
define tests
$(PYTEST) $(1) --ignore tests/test_notebooks.py
$(PY) -m pytest $(1) tests/test_notebooks.py --durations 4
endef

test: $(VENV)/.installed-dev
	$(call tests)

check: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PYTEST) -m 'not slow'

slow: $(VENV)/.installed-dev
	$(call tests,-m slow)

faults: $(VENV)/.installed-dev
	$(PYTEST) -m fault --fault-table $(or $(OUTPUTS_DIR),outputs)/metrics/fault_table.md

faults-long: $(VENV)/.installed-dev
	FAULTS_LONG=1 LONG_RUN_FRAMES=100000 $(PYTEST) -m long

# OpenCV's usual wheel needs libGL.so.1, which slim machines lack; the headless one does not.
define ensure_opencv
@if $(PY) -c 'import cv2' 2>&1 | grep -q 'libGL\|libgthread'; then \
    echo "No libGL.so.1 here: taking opencv-python-headless instead of opencv-python"; \
    $(PIP) uninstall --yes opencv-python opencv-python-headless; \
    $(PIP) install --no-deps --constraint constraints.txt opencv-python-headless; \
fi
endef

$(VENV)/.installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo "error: $(PYTHON): not Python 3.10 or newer – run: make PYTHON=/path/to/python3"; \
	    exit 2; } >&2
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing requirements.txt into $(VENV): a few minutes and about 7 GB, once"
	@$(PIP) install --requirement requirements.txt --constraint constraints.txt
	$(ensure_opencv)
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "Installing requirements-dev.txt into $(VENV)"
	@$(PIP) install --requirement requirements-dev.txt --constraint constraints.txt
	$(ensure_opencv)
	@touch $@
