/*
 * Which acts of the test guest need system calls that a busybox shell cannot make, or would make too dearly?
 * One static program, one verb per act; root/init and root/www/cgi-bin call it. Output is one write per line.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* The driver's contract: isa-debug-exit at this port; a byte written there is the task's exit code. */
enum { EXIT_PORT = 0x501 };

/* Numbered datagrams go to this port, one each so many milliseconds; so many numbers are told apart. */
enum { STREAM_PORT = 9, STREAM_MS = 10, STREAM_MAX = 1 << 20 };

/* The console, whatever our stdout is: httpd gives its children a socket. */
static int console(void)
{
	static int fd = -1;
	if (fd < 0 && (fd = open("/dev/console", O_WRONLY | O_NOCTTY)) < 0)
		fd = STDOUT_FILENO;
	return fd;
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char line[256];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	if (n < 0 || write(console(), line, (size_t)n) < 0)
		return;
}

static int fail(const char *what)
{
	say("steppe-guest: %s: %s\n", what, strerror(errno));
	return 1;
}

static long number(const char *text, long low, long high)
{
	char *end = NULL;
	long n = text && *text ? strtol(text, &end, 10) : -1;
	if (!end || *end || n < low || n > high) {
		say("steppe-guest: %s is no number from %ld to %ld\n", text ? text : "(nothing)", low, high);
		exit(2);
	}
	return n;
}

/* Everything said must have left the UART before the machine goes: QEMU drops what it did not get. */
static void drain(void)
{
	tcdrain(console());
}

static int mounts(void)
{
	if (mount("proc", "/proc", "proc", 0, NULL) || mount("sysfs", "/sys", "sysfs", 0, NULL) ||
	    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL))
		return fail("mount");
	return 0;
}

/* One process for all modules: a fork and exec per module costs more under TCG than the loading. */
static int load(char **names)
{
	int rc = 0;
	for (; *names; names++) {
		char path[128];
		snprintf(path, sizeof path, "/lib/modules/%s.ko", *names);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			rc = fail(path);
		if (fd >= 0)
			close(fd);
	}
	return rc;
}

/* An orderly end: others are told, data is written, and "bye" is the last line. */
static int power_off(void)
{
	say("steppe-guest: powering off\n");
	kill(-1, SIGTERM); /* all but us and pid 1 */
	usleep(20 * 1000);
	sync();
	/* The kernel's own "Power down" would follow as a message of the highest level. */
	int fd = open("/proc/sys/kernel/printk", O_WRONLY);
	if (fd < 0 || write(fd, "0", 1) != 1)
		fail("printk");
	say("steppe-guest: bye\n");
	drain();
	reboot(RB_POWER_OFF);
	return fail("power off");
}

/* Listens before it returns, so that a button pressed after "ready" is never lost. */
static int button(void)
{
	struct pollfd fds[8];
	nfds_t n = 0;
	DIR *dir = opendir("/dev/input");
	for (struct dirent *e; dir && n < 8 && (e = readdir(dir));) {
		if (strncmp(e->d_name, "event", 5))
			continue;
		int fd = openat(dirfd(dir), e->d_name, O_RDONLY | O_CLOEXEC);
		if (fd >= 0)
			fds[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
	}
	if (!n)
		return fail("no power button");
	if (fork())
		return 0;
	setsid();
	for (;;) {
		if (poll(fds, n, -1) < 0)
			continue;
		for (nfds_t i = 0; i < n; i++) {
			struct input_event event;
			if ((fds[i].revents & POLLIN) && read(fds[i].fd, &event, sizeof event) == sizeof event &&
			    event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
				return power_off();
		}
	}
}

/* Waits until so many milliseconds after the time before. */
static void wait_next(struct timespec *next, long ms)
{
	next->tv_nsec += (ms % 1000) * 1000000;
	next->tv_sec += ms / 1000 + next->tv_nsec / 1000000000;
	next->tv_nsec %= 1000000000;
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, next, NULL) == EINTR)
		;
}

/* Numbered, and on absolute times: a missing line is a lost line, never a late one. */
_Noreturn static void ticks(long ms)
{
	struct timespec next;
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (unsigned long n = 1;; n++) {
		say("tick %lu\n", n);
		wait_next(&next, ms);
	}
}

/* The same as datagrams to an IPv4 address. */
static int stream(const char *text)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(STREAM_PORT)};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct timespec next;
	if (inet_pton(AF_INET, text, &to.sin_addr) != 1 || connect(fd, (struct sockaddr *)&to, sizeof to))
		return fail(text);
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (uint32_t n = 1; n < STREAM_MAX; n++) {
		uint32_t sent[32] = {htonl(n)};
		if (send(fd, sent, sizeof sent, 0) != sizeof sent)
			fail("stream");
		wait_next(&next, STREAM_MS);
	}
	return 0;
}

/* Listens before it returns; then says each second how many different ones came, of how many that were sent. */
static int count(void)
{
	static unsigned char seen[STREAM_MAX];
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(STREAM_PORT)};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (bind(fd, (struct sockaddr *)&at, sizeof at))
		return fail("count");
	if (fork())
		return 0;
	setsid();
	uint32_t came = 0, last = 0;
	time_t said = 0;
	for (;;) {
		uint32_t got[32];
		struct timespec now;
		ssize_t size = recv(fd, got, sizeof got, 0);
		uint32_t n = size < (ssize_t)sizeof *got ? 0 : ntohl(*got);
		if (!n || n >= STREAM_MAX)
			continue;
		came += !seen[n];
		seen[n] = 1;
		last = n > last ? n : last;
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec != said)
			say("steppe-guest: stream %u of %u\n", came, last);
		said = now.tv_sec;
	}
}

_Noreturn static void flood(void)
{
	for (unsigned long n = 1;; n++)
		say("flood %lu\n", n);
}

static int eat(long mib)
{
	for (long i = 0; i < mib; i++) {
		void *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			return fail("eat");
		memset(p, 0x5a, 1 << 20);
	}
	say("steppe-guest: ate %ld MiB\n", mib);
	for (;;)
		pause();
}

/*
 * Shows what the first sector holds, then counts it up. A whole sector of text and zeros is written, so that a shorter
 * text leaves nothing of a longer one; what is not ours is shown, not trusted.
 */
static int disk(const char *path)
{
	char sector[512] = {0};
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, sector, sizeof sector, 0) != sizeof sector)
		return fail(path);
	close(fd);
	sector[64] = 0;
	for (char *c = sector; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = *c == '\n' && !c[1] ? 0 : '?';
	say("steppe-guest: disk found '%s'\n", sector);
	unsigned long n = 0;
	if (sscanf(sector, "steppe-disk %lu", &n) != 1)
		n = 0;
	memset(sector, 0, sizeof sector);
	snprintf(sector, sizeof sector, "steppe-disk %lu\n", n + 1);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || pwrite(fd, sector, sizeof sector, 0) != sizeof sector || fsync(fd))
		return fail("disk cannot be written");
	say("steppe-guest: disk wrote 'steppe-disk %lu'\n", n + 1);
	return 0;
}

static int exit_with(long code)
{
	say("steppe-guest: exit %ld\n", code);
	drain();
	/* Debian's kernel has no /dev/port; ioperm reaches this one (all below 0x10000). */
	if (ioperm(EXIT_PORT, 1, 1))
		return fail("ioperm");
	outb((unsigned char)code, EXIT_PORT);
	say("steppe-guest: no exit device at port 0x%x\n", EXIT_PORT);
	return 1;
}

static int panic(void)
{
	say("steppe-guest: panic\n");
	drain();
	int fd = open("/proc/sysrq-trigger", O_WRONLY);
	return fd < 0 || write(fd, "c", 1) != 1 ? fail("panic") : 0;
}

static int reset(void)
{
	say("steppe-guest: rebooting\n");
	sync();
	drain();
	reboot(RB_AUTOBOOT);
	return fail("reboot");
}

/* What pid 1 becomes when the script is done: orphans are reaped by the kernel, nothing else happens. */
_Noreturn static void idle(void)
{
	signal(SIGCHLD, SIG_IGN);
	for (;;)
		pause();
}

/* A sector each so many MiB: whoever keeps tables for this disk needs all of them. */
static int scan(const char *path, long mib)
{
	char sector[512];
	long n = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	if (size < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM))
		return fail(path);
	for (off_t at = 0; at < size; at += (off_t)mib << 20, n++)
		if (pread(fd, sector, sizeof sector, at) != sizeof sector)
			return fail(path);
	say("steppe-guest: disk scanned %s, %ld sectors\n", path + strlen("/dev/"), n);
	return 0;
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";
	const char *word = argc > 2 ? argv[2] : NULL;
	if (!strcmp(verb, "mounts"))
		return mounts();
	if (!strcmp(verb, "load"))
		return load(argv + 2);
	if (!strcmp(verb, "button"))
		return button();
	if (!strcmp(verb, "ticks"))
		ticks(number(word, 1, 3600000));
	if (!strcmp(verb, "flood"))
		flood();
	if (!strcmp(verb, "stream") && word)
		return stream(word);
	if (!strcmp(verb, "count"))
		return count();
	if (!strcmp(verb, "eat"))
		return eat(number(word, 1, 1 << 20));
	if (!strcmp(verb, "disk") && word)
		return disk(word);
	if (!strcmp(verb, "scan") && word && argc > 3)
		return scan(word, number(argv[3], 1, 1 << 20));
	if (!strcmp(verb, "exit"))
		return exit_with(number(word, 0, 255));
	if (!strcmp(verb, "poweroff"))
		return power_off();
	if (!strcmp(verb, "panic"))
		return panic();
	if (!strcmp(verb, "reboot"))
		return reset();
	if (!strcmp(verb, "idle"))
		idle();
	say("steppe-guest: guestctl knows no '%s'\n", verb);
	return 2;
}
