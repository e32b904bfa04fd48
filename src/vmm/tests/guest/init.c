/*
 * The init of the test guests: runs the test that `guest.test=` on the kernel command line names, reports on vsock port 1, and
 * ends the machine. One line "ok" or "failed: …" is the last of a report.
 *
 * Ports of the host, as guest.rs serves them:
 *    1 report   10 echo   11 bulk both ways   12 sends a greeting, ends, then listens   13 stalls until told
 *   14 reads ten bytes and closes   15 is refused   16 writes all it can   17 reads late   18 reads until the end
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <unistd.h>
#include <linux/fs.h>
#include <linux/sockios.h>
#include <linux/vm_sockets.h>

#define MIB (1 << 20)
#define BULK (100L * MIB)

static int report = -1;

static void say(const char *format, ...)
{
	char line[512];
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	if (write(report, line, length) != length)
		reboot(RB_AUTOBOOT);
}

static void end(void)
{
	shutdown(report, SHUT_WR);
	char byte;
	while (read(report, &byte, 1) > 0)
		;
	reboot(RB_AUTOBOOT);
}

#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			say("failed: line %d: %s (errno %d)\n", __LINE__, #condition, errno); \
			end(); \
		} \
	} while (0)

static int dial(unsigned port)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = port };
	/* The default of two seconds is short for an emulated machine under load. */
	struct timeval patience = { .tv_sec = 100 };
	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience, sizeof patience);
	if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
		return fd;
	int error = errno;
	close(fd);
	errno = error;
	return -1;
}

/*
 * What every long stream carries, in both directions: the 64-bit number at position 8n is n times this. Fills `buffer` with the
 * part from position `at`, a multiple of 8.
 */
static void fill(uint64_t *buffer, long at, long bytes)
{
	for (long i = 0; i < bytes / 8; i++)
		buffer[i] = (at / 8 + i) * 0x9e3779b97f4a7c15;
}

static void check_pattern(const uint8_t *bytes, long at, long count)
{
	static __thread uint64_t expected[(256 << 10) / 8 + 2];
	fill(expected, at & ~7L, count + 16);
	CHECK(memcmp(bytes, (uint8_t *)expected + (at & 7), count) == 0);
}

static void write_pattern(int fd, long bytes)
{
	static __thread uint64_t buffer[(256 << 10) / 8];
	for (long at = 0; at < bytes;) {
		long piece = bytes - at < (long)sizeof buffer ? bytes - at : (long)sizeof buffer;
		fill(buffer, at, sizeof buffer);
		for (long done = 0; done < piece;) {
			ssize_t count = write(fd, (uint8_t *)buffer + done, piece - done);
			CHECK(count > 0);
			done += count;
		}
		at += piece;
	}
}

/* Reads to the end of the stream. */
static long read_pattern(int fd)
{
	static __thread uint8_t buffer[256 << 10];
	long at = 0;
	for (;;) {
		ssize_t count = read(fd, buffer, sizeof buffer);
		CHECK(count >= 0);
		if (count == 0)
			return at;
		check_pattern(buffer, at, count);
		at += count;
	}
}

static void test_nothing(void) {}

static void test_processors(void)
{
	long count = sysconf(_SC_NPROCESSORS_ONLN);
	for (int cpu = 0; cpu < count; cpu++) {
		cpu_set_t set;
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		CHECK(sched_setaffinity(0, sizeof set, &set) == 0);
		CHECK(sched_getcpu() == cpu);
	}
	say("processors %ld\n", count);
}

static void test_memory(void)
{
	struct sysinfo info;
	CHECK(sysinfo(&info) == 0);
	say("memory %lu\n", info.totalram * info.mem_unit / MIB);
	/* A place in every part of the memory is touched. */
	long bytes = info.freeram * info.mem_unit / 2;
	char *memory = malloc(bytes);
	CHECK(memory);
	for (long at = 0; at < bytes; at += 32 * MIB)
		memory[at] = 1;
}

static void expect_serial(const char *disk, const char *serial)
{
	char path[64], text[64] = "";
	snprintf(path, sizeof path, "/sys/block/%s/serial", disk);
	int fd = open(path, O_RDONLY);
	CHECK(fd >= 0);
	CHECK(read(fd, text, sizeof text - 1) > 0);
	CHECK(strncmp(text, serial, strlen(serial)) == 0);
	close(fd);
}

/* vda: read-only, its pattern from byte 0. vdb: read-write, 64 MiB, empty. vdc: scratch, 64 MiB, full of ones. */
static void test_disks(void)
{
	static uint8_t buffer[MIB] __attribute__((aligned(4096)));
	expect_serial("vda", "first");
	expect_serial("vdb", "second");
	expect_serial("vdc", "third");
	CHECK(open("/dev/vda", O_RDWR) < 0 || ioctl(open("/dev/vda", O_RDWR), BLKDISCARD, (uint64_t[]){ 0, 4096 }) < 0);

	for (int flags = 0; flags <= O_DIRECT; flags += O_DIRECT) {
		int fd = open("/dev/vda", O_RDONLY | flags);
		CHECK(fd >= 0);
		long at = 0;
		ssize_t count;
		while ((count = read(fd, buffer, sizeof buffer)) > 0) {
			for (long part = 0; part < count; part += 64 << 10)
				check_pattern(buffer + part, at + part, 64 << 10);
			at += count;
		}
		CHECK(count == 0 && at == 32L * MIB);
		close(fd);
	}

	int fd = open("/dev/vdb", O_RDWR | O_DIRECT);
	CHECK(fd >= 0);
	for (long at = 0; at < 32L * MIB; at += sizeof buffer) {
		fill((uint64_t *)buffer, at, sizeof buffer);
		CHECK(pwrite(fd, buffer, sizeof buffer, at) == sizeof buffer);
	}
	CHECK(fsync(fd) == 0);
	CHECK(ioctl(fd, BLKZEROOUT, (uint64_t[]){ 8L * MIB, MIB }) == 0);
	CHECK(ioctl(fd, BLKDISCARD, (uint64_t[]){ 16L * MIB, 8L * MIB }) == 0);
	CHECK(pread(fd, buffer, 4096, 20L * MIB) == 4096 && buffer[0] == 0 && buffer[4095] == 0);
	close(fd);

	/* Through the page cache, in small pieces that the kernel merges. */
	fd = open("/dev/vdc", O_RDWR);
	CHECK(fd >= 0);
	for (long at = 0; at < 4L * MIB; at += 4096) {
		memset(buffer, at >> 12, 4096);
		CHECK(pwrite(fd, buffer, 4096, at) == 4096);
	}
	CHECK(fsync(fd) == 0);
	CHECK(ioctl(fd, BLKDISCARD, (uint64_t[]){ 32L * MIB, 32L * MIB }) == 0);
	close(fd);
}

static void *bulk_writer(void *fd)
{
	write_pattern(*(int *)fd, BULK);
	shutdown(*(int *)fd, SHUT_WR);
	return 0;
}

static void test_bulk(void)
{
	int fd = dial(11);
	CHECK(fd >= 0);
	pthread_t writer;
	CHECK(pthread_create(&writer, 0, bulk_writer, &fd) == 0);
	CHECK(read_pattern(fd) == BULK);
	pthread_join(writer, 0);
	close(fd);
}

static void echo(const char *text)
{
	char answer[64] = "";
	int fd = dial(10);
	CHECK(fd >= 0);
	CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	CHECK(shutdown(fd, SHUT_WR) == 0);
	size_t at = 0;
	ssize_t count;
	while ((count = read(fd, answer + at, sizeof answer - at)) > 0)
		at += count;
	CHECK(count == 0 && at == strlen(text) && memcmp(answer, text, at) == 0);
	close(fd);
}

static void test_ends(void)
{
	char buffer[64];
	echo("both directions end by themselves");

	/* The host ends first; the guest goes on sending. */
	int fd = dial(12);
	CHECK(fd >= 0);
	CHECK(read(fd, buffer, sizeof buffer) == 5 && memcmp(buffer, "hello", 5) == 0);
	CHECK(read(fd, buffer, sizeof buffer) == 0);
	write_pattern(fd, 300000);
	close(fd);

	/* The endpoint goes away: writing fails, soon. */
	fd = dial(14);
	CHECK(fd >= 0);
	int writes = 0;
	while (send(fd, buffer, sizeof buffer, MSG_NOSIGNAL) > 0) {
		CHECK(++writes < 100000);
		usleep(100);
	}
	CHECK(errno == EPIPE || errno == ECONNRESET);
	close(fd);

	CHECK(dial(15) < 0 && errno == ECONNRESET);

	/* Closed at once; the reader is late. */
	fd = dial(17);
	CHECK(fd >= 0);
	write_pattern(fd, 200000);
	close(fd);
}

static void test_many(void)
{
	enum { STREAMS = 500 };
	static int streams[STREAMS];
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < STREAMS; i++) {
			CHECK((streams[i] = dial(10)) >= 0);
			CHECK(write(streams[i], &i, sizeof i) == sizeof i);
		}
		for (int i = STREAMS - 1; i >= 0; i--) {
			int answer = -1;
			CHECK(recv(streams[i], &answer, sizeof answer, MSG_WAITALL) == sizeof answer && answer == i);
		}
		for (int i = 0; i < STREAMS; i++)
			close(streams[i]);
	}
}

static void test_stall(void)
{
	static uint64_t buffer[(64 << 10) / 8 + 1];
	int fd = dial(13);
	CHECK(fd >= 0);
	CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
	long accepted = 0;
	for (int idle = 0; idle < 20;) {
		fill(buffer, accepted & ~7L, sizeof buffer);
		ssize_t count = write(fd, (uint8_t *)buffer + (accepted & 7), 64 << 10);
		if (count > 0) {
			accepted += count;
			idle = 0;
		} else {
			CHECK(errno == EAGAIN);
			idle++;
			usleep(10000);
		}
	}
	CHECK(accepted < 2L * MIB);
	echo("another stream while one stalls");

	/* The other way: the host writes all it can, and nobody reads here. */
	int other = dial(16);
	CHECK(other >= 0);
	sleep(1);
	echo("another stream while two stall");
	say("accepted %ld\n", accepted);
	CHECK(shutdown(fd, SHUT_WR) == 0);
	say("read %ld\n", read_pattern(other));
	close(other);
	struct pollfd closed = { .fd = fd, .events = POLLIN };
	CHECK(poll(&closed, 1, 10000) == 1);
	close(fd);
}

static void test_ticks(void)
{
	for (int tick = 0;; tick++) {
		say("tick %d\n", tick);
		usleep(20000);
	}
}

static void test_spin(void)
{
	say("spinning\n");
	for (;;)
		;
}

static void test_last_words(void)
{
	int fd = dial(18);
	CHECK(fd >= 0);
	write_pattern(fd, 100000);
	/* What the kernel has not yet given to the device would be lost. */
	for (int unsent = 1; unsent > 0; usleep(1000))
		CHECK(ioctl(fd, SIOCOUTQ, &unsent) == 0);
	reboot(RB_AUTOBOOT);
}

static void test_panic(void)
{
	exit(0);
}

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	{ "nothing", test_nothing }, { "processors", test_processors }, { "memory", test_memory },
	{ "disks", test_disks },     { "bulk", test_bulk },             { "ends", test_ends },
	{ "many", test_many },       { "stall", test_stall },           { "ticks", test_ticks },
	{ "spin", test_spin },       { "last-words", test_last_words }, { "panic", test_panic },
};

int main(void)
{
	char line[4096] = "";
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, 0);
	mount("sysfs", "/sys", "sysfs", 0, 0);
	mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
	int fd = open("/proc/cmdline", O_RDONLY);
	if (read(fd, line, sizeof line - 1) <= 0 || (report = dial(1)) < 0)
		reboot(RB_AUTOBOOT);
	const char *name = strstr(line, "guest.test=");
	name = name ? name + strlen("guest.test=") : "";
	for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
		if (strncmp(name, tests[i].name, strlen(tests[i].name)) == 0) {
			tests[i].run();
			say("ok\n");
			end();
		}
	}
	say("failed: there is no test %s", name);
	end();
}
