# cwrun's front door. Every target works from a fresh clone, as root, with nobody at the keyboard: `setup` comes first by itself
# and installs what is missing. `make help` lists the targets.

PREFIX ?= /usr/local
DESTDIR ?=
# `make install KRUN=1` also installs the name `krun`, which engines may already know as another runtime's.
KRUN ?=

GUEST := target/guest
TRIPLE := x86_64-unknown-linux-gnu
CARGO ?= cargo

.PHONY: help setup build cwrun broker guest demo test test-snp lint bench soak install install-broker clean

help:
	@echo 'make build     cwrun and the guest files (kernel, initrd, stage0)'
	@echo 'make demo      boots a container of a Debian root file system and shows what it prints'
	@echo 'make test      unit, property and end-to-end tests; the last line counts them'
	@echo 'make test-snp  the confidential tests under SEV-SNP, on a machine that has it'
	@echo 'make lint      format, clippy, dependencies'
	@echo 'make bench     times conversion beside mkfs.erofs and tar, starts beside crun and QEMU, plain and sealed, layers, volumes, disks, network, broker'
	@echo 'make soak      the long tests: reproducible kernel, crash tests, the testbed itself'
	@echo 'make install   into $$(DESTDIR)$$(PREFIX)/bin and $$(DESTDIR)/usr/lib/cwrun; KRUN=1 adds the krun name'
	@echo 'make install-broker  the key broker alone, into $$(DESTDIR)$$(PREFIX)/bin'
	@echo 'make setup     installs and caches what all of these need (they call it themselves)'
	@echo 'make clean     removes target/; the cache outside the checkout stays'

setup:
	@tests/testbed/setup

build: cwrun guest

cwrun: setup
	$(CARGO) build --release --locked -p cwrun

broker: setup
	$(CARGO) build --release --locked -p broker

# The init must run without a C library in the guest: the only crate that is linked statically, hence flags of its own. With
# --target they do not reach build scripts, and nothing else is compiled again.
guest: setup
	src/guest-kernel/build --out $(GUEST)
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --release --locked -p init --target $(TRIPLE)
	src/guest-kernel/pack-initrd target/$(TRIPLE)/release/init $(GUEST)/initrd
	src/stage0/build --plain --out $(GUEST)

demo: build
	tests/demo

test: build
	tests/run

# Not through `build`: a machine that can't run them is told so before anything is built.
test-snp:
	@tests/snp

bench: build broker
	benches/convert
	tests/testbed/rootfs busybox debian
	tests/testbed/run --deadline 1800 --share target/bench -- benches/run
	tests/testbed/run --deadline 1800 --share target/bench -- benches/sealed
	tests/testbed/run --deadline 1800 --share target/bench -- benches/layers
	tests/testbed/run --deadline 1800 --share target/bench -- benches/net
	tests/testbed/run --deadline 1800 --memory 4096 --share target/bench -- benches/volumes
	benches/io
	benches/broker

soak: build
	tests/run --soak

lint:
	@tests/testbed/setup --lint
	tests/lint

install: build
	install -D -m 755 target/release/cwrun $(DESTDIR)$(PREFIX)/bin/cwrun
	install -D -m 644 $(GUEST)/vmlinux $(DESTDIR)/usr/lib/cwrun/vmlinux
	install -D -m 644 $(GUEST)/initrd $(DESTDIR)/usr/lib/cwrun/initrd
	install -D -m 644 $(GUEST)/bzImage $(DESTDIR)/usr/lib/cwrun/bzImage
	install -D -m 644 $(GUEST)/stage0 $(DESTDIR)/usr/lib/cwrun/stage0
	install -D -m 644 $(GUEST)/stage0-plain $(DESTDIR)/usr/lib/cwrun/stage0-plain
	$(if $(KRUN),ln -sf cwrun $(DESTDIR)$(PREFIX)/bin/krun)

install-broker: broker
	install -D -m 755 target/release/cwrun-broker $(DESTDIR)$(PREFIX)/bin/cwrun-broker

clean:
	rm -rf target
