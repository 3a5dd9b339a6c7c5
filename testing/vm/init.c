/*
 * Which process is the first in a machine of run.sh? It makes the machine an ordinary Linux host, runs one program, carries
 * out its output and how it ended, and ends the machine. README.md says what the program finds.
 *
 * What to do stands in files that run.sh puts into /vm: `modules` (names, in the order to load them), `command` and
 * `environment` (strings, each ended by a zero byte), `processors`, and `merge` where stdout and stderr are one stream.
 * Three ports lead out: the program's stdout and stderr, and the words of init itself: `started`, then `exit N` or `signal N`;
 * or `stalled`, where this boot went wrong before the program ran and another may go well.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

/* run.sh's contract: isa-debug-exit at this port, and QEMU then ends with 2 * 49 + 1. */
enum { EXIT_PORT = 0x501, EXIT_BYTE = 49 };

enum { STDOUT_PORT = 1, STDERR_PORT = 2, WORDS_PORT = 3 };

static int words = -1;

/* Into the kernel's console, which run.sh shows where the machine fails. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char line[512];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	int fd = open("/dev/ttyS0", O_WRONLY | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 || write(fd, line, (size_t)n) < 0)
		return;
	close(fd);
}

__attribute__((noreturn)) static void end(const char *word, int number)
{
	if (words >= 0 && dprintf(words, number < 0 ? "%s\n" : "%s %d\n", word, number) < 0)
		say("vm: cannot say %s %d: %s\n", word, number, strerror(errno));
	sync();
	/* Debian's kernel has no /dev/port; ioperm reaches this one. */
	if (!ioperm(EXIT_PORT, 1, 1))
		outb(EXIT_BYTE, EXIT_PORT);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

__attribute__((noreturn)) static void fail(const char *what)
{
	say("vm: %s: %s\n", what, strerror(errno));
	end("failed", -1);
}

static void mounted(const char *type, const char *where, unsigned long flags, const char *options)
{
	if ((mkdir(where, 0755) && errno != EEXIST) || mount(type, where, type, flags, options))
		fail(where);
}

/* All of a file, with a zero byte behind it; NULL where there is none. */
static char *all_of(const char *path, size_t *length)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	size_t room = 4096, used = 0;
	char *text = malloc(room + 1);
	for (ssize_t n; text && (n = read(fd, text + used, room - used)) > 0;) {
		used += (size_t)n;
		if (used == room)
			text = realloc(text, (room *= 2) + 1);
	}
	close(fd);
	if (!text)
		fail(path);
	text[used] = 0;
	if (length)
		*length = used;
	return text;
}

/* The strings of such a file, as execve takes them. */
static char **strings_of(const char *path)
{
	size_t length = 0, count = 0;
	char *text = all_of(path, &length);
	if (!text)
		fail(path);
	for (size_t i = 0; i < length; i++)
		count += !text[i];
	char **strings = calloc(count + 1, sizeof *strings);
	if (!strings)
		fail(path);
	for (size_t i = 0; i < count; i++, text += strlen(text) + 1)
		strings[i] = text;
	return strings;
}

static void write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		fail(path);
	close(fd);
}

/* The first root of a kernel cannot be left with pivot_root; a bind mount of it, moved over it, can. */
static void ordinary_root(void)
{
	if (mount("/", "/vm/root", NULL, MS_BIND, NULL) || chdir("/vm/root") || mount(".", "/", NULL, MS_MOVE, NULL) ||
	    chroot(".") || chdir("/") || chmod("/", 0755))
		fail("root");
}

/* What systemd mounts, with its options. */
static void mounts(void)
{
	mounted("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mounted("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mounted("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
	mounted("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
	mounted("cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate,memory_recursiveprot");
	if (mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL))
		fail("shared mounts");
	if (symlink("/proc/self/fd", "/dev/fd") || symlink("/proc/self/fd/0", "/dev/stdin") ||
	    symlink("/proc/self/fd/1", "/dev/stdout") || symlink("/proc/self/fd/2", "/dev/stderr"))
		fail("/dev");
}

static void controllers(void)
{
	char *names = all_of("/sys/fs/cgroup/cgroup.controllers", NULL);
	for (char *name = names ? strtok(names, " \n") : NULL; name; name = strtok(NULL, " \n")) {
		char word[64];
		snprintf(word, sizeof word, "+%s", name);
		write_to("/sys/fs/cgroup/cgroup.subtree_control", word);
	}
	free(names);
}

static void load_modules(void)
{
	char *names = all_of("/vm/modules", NULL);
	for (char *name = names ? strtok(names, "\n") : NULL; name; name = strtok(NULL, "\n")) {
		char path[256];
		snprintf(path, sizeof path, "/vm/lib/%s.ko", name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			fail(path);
		close(fd);
	}
	free(names);
}

static void loopback(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
		fail("lo");
	close(fd);
}

/* QEMU tells of its ports one by one, after the driver was loaded. */
static int port(int number)
{
	char path[32];
	snprintf(path, sizeof path, "/dev/vport0p%d", number);
	for (int tries = 0; tries < 10000; tries++) {
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd >= 0)
			return fd;
		usleep(1000);
	}
	fail(path);
}

/* On a very busy host an emulated processor may miss its start, or the kernel gives up its timer: then all sleep hangs. */
static int stalled(void)
{
	static char log[1 << 18];
	char *wanted = all_of("/vm/processors", NULL);
	int n = klogctl(3 /* read all */, log, sizeof log - 1);
	log[n < 0 ? 0 : n] = 0;
	int lacks = wanted && get_nprocs() != atoi(wanted);
	free(wanted);
	return lacks || strstr(log, "disabling apic timer") != NULL;
}

__attribute__((noreturn)) static void become(char **command, int out, int err)
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	int in = open("/dev/null", O_RDONLY);
	char **environment = strings_of("/vm/environment");
	for (char **variable = environment; *variable; variable++)
		if (putenv(*variable))
			fail("environment");
	if (in < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0 || close_range(3, ~0U, 0) || chdir("/root"))
		fail("program");
	execvp(command[0], command);
	int error = errno;
	dprintf(2, "vm: %s cannot be run in the guest: %s\n", command[0], strerror(error));
	_exit(error == ENOENT ? 127 : 126);
}

/* Passes on what there is; whether more may come. */
static int relay(int from, int to)
{
	static char buffer[1 << 16];
	ssize_t n = read(from, buffer, sizeof buffer);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	for (ssize_t done = 0; done < n;) {
		ssize_t m = write(to, buffer + done, (size_t)(n - done));
		if (m < 0 && errno != EINTR)
			return 0;
		done += m > 0 ? m : 0;
	}
	return n > 0;
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	sigset_t children;
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, NULL);
	if (clearenv())
		return 1;

	ordinary_root();
	mounted("devtmpfs", "/dev", MS_NOSUID, "mode=755");
	/* The kernel found no console to open: 0, 1 and 2 must not become something else. */
	for (int fd = 0; fd < 3;)
		if ((fd = open("/dev/null", O_RDWR)) < 0)
			fail("/dev/null");
	mounts();
	load_modules();
	words = port(WORDS_PORT);
	if (stalled())
		end("stalled", -1);
	controllers();
	loopback();
	sethostname("vm", 2);
	struct rlimit files = {.rlim_cur = 1024, .rlim_max = 524288};
	setrlimit(RLIMIT_NOFILE, &files);

	/* Pipes, because a port can be opened only once: /dev/stdout would not. */
	int to[2] = {port(STDOUT_PORT), port(STDERR_PORT)};
	int out[2], err[2];
	if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
		fail("pipe");
	int merge = !access("/vm/merge", F_OK);
	char **command = strings_of("/vm/command");
	int child_ends = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
	if (child_ends < 0 || dprintf(words, "started\n") < 0)
		fail("words");

	pid_t program = fork();
	if (program < 0)
		fail("fork");
	if (!program) {
		setsid();
		become(command, out[1], merge ? out[1] : err[1]);
	}
	close(out[1]);
	close(err[1]);

	struct pollfd wait[3] = {
		{.fd = out[0], .events = POLLIN}, {.fd = err[0], .events = POLLIN}, {.fd = child_ends, .events = POLLIN}};
	int status = 0, ended = 0;
	while (!ended) {
		if (poll(wait, 3, -1) < 0)
			continue;
		for (int i = 0; i < 2; i++)
			if (wait[i].revents && !relay(wait[i].fd, to[i]))
				wait[i].fd = -1;
		if (wait[2].revents) {
			struct signalfd_siginfo information;
			while (read(child_ends, &information, sizeof information) > 0)
				;
			/* Every orphan is ours. */
			int of;
			for (pid_t pid; (pid = waitpid(-1, &of, WNOHANG)) > 0;)
				if (pid == program) {
					status = of;
					ended = 1;
				}
		}
	}
	/* What it wrote before it ended: a pipe holds no more than that. Others may hold the pipes open, nobody waits for them. */
	for (int i = 0; i < 2; i++) {
		int from = i ? err[0] : out[0];
		fcntl(from, F_SETFL, O_NONBLOCK);
		struct pollfd more = {.fd = from, .events = POLLIN};
		for (int rest = 0; rest < 16 && poll(&more, 1, 0) > 0 && (more.revents & POLLIN) && relay(from, to[i]); rest++)
			;
	}
	if (WIFSIGNALED(status))
		end("signal", WTERMSIG(status));
	end("exit", WEXITSTATUS(status));
}
