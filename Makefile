# The front door. A newcomer needs two: `make demo` and `make test`.
# Waiting threads of OpenMP spin by default, which costs minutes where programs share a machine, as tests do.
export OMP_WAIT_POLICY ?= passive

PRESET ?= release
BUILD := build/$(PRESET)
LOCKSTEP := $(BUILD)/src/lockstep
INPUT ?= In the beginning God created the heaven and the earth.

.PHONY: help demo test test-release test-asan build bootstrap bootstrap-dev check zoo points install clean

help:
	@echo "make demo    install what is missing, build, and compare the C++ engine with PyTorch on the bundled model"
	@echo "make test    install what is missing, build, and run every test"
	@echo "make build   only build; the program is $(LOCKSTEP)"
	@echo "make check   formatting and static checks (tools/check --fix repairs the formatting)"
	@echo "make zoo     run all planted bugs and correct runs before the judge, and write docs/accuracy.md"
	@echo "make points  regenerate python/lockstep/points.json and docs/points.md from the point table"
	@echo "make clean   remove build/ and .venv/"

demo: bootstrap
	@tools/build $(PRESET) lockstep_cli
	$(LOCKSTEP) debug models/tiny-qwen3 --input "$(INPUT)" --decode 4 --all --html lockstep-debug/report.html

test: bootstrap-dev test-release test-asan

test-release: build
	ctest --preset $(PRESET) -j$$(nproc)
	.venv/bin/python -m pytest tests/python -q

# The same C++ tests, and the hostile files, under AddressSanitizer and UndefinedBehaviorSanitizer.
test-asan:
	@tools/build asan
	ctest --preset asan -j$$(nproc)
	LOCKSTEP_PROGRAM=build/asan/src/lockstep .venv/bin/python -m pytest tests/python/test_bad_input.py -q

build:
	@tools/build $(PRESET)

bootstrap:
	@tools/bootstrap

bootstrap-dev:
	@tools/bootstrap --dev

check: bootstrap-dev
	tools/check

zoo: bootstrap-dev build
	.venv/bin/python tests/zoo/run.py

points: build
	cmake --build $(BUILD) --target lockstep_points
	$(BUILD)/src/points json > python/lockstep/points.json
	.venv/bin/python tools/update_docs_points.py $(BUILD)/src/points

clean:
	rm -rf build .venv
