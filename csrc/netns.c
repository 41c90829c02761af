/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Network namespaces as pinned files (a bind mount of /proc/<thread>/ns/net, as `ip netns` makes them).
 * setns(2) and unshare(2) act on the calling thread for good, so each namespace is visited by a short-lived
 * thread with all signals blocked.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "native.h"

#define STACK_SIZE (128 * 1024)

struct visit {
	const char *path;
	const char *step;
	int family, type, protocol;
	int result;
};

static int failed(struct visit *visit, const char *step)
{
	visit->step = step;
	visit->result = -errno;
	return -1;
}

static int run_in_thread(void *(*body)(void *), struct visit *visit)
{
	sigset_t all, before;
	pthread_attr_t attr;
	pthread_t thread;
	int rc;

	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_SIZE);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&thread, &attr, body, visit);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (rc) {
		visit->step = "pthread_create";
		return -rc;
	}
	pthread_join(thread, NULL);
	return visit->result;
}

static int loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int rc, sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (sock < 0)
		return -1;
	rc = ioctl(sock, SIOCSIFFLAGS, &request);
	close(sock);
	return rc;
}

static void *create_body(void *arg)
{
	struct visit *visit = arg;

	if (unshare(CLONE_NEWNET) < 0)
		failed(visit, "unshare(CLONE_NEWNET)");
	else if (loopback_up() < 0)
		failed(visit, "bringing lo up");
	else if (mount("/proc/thread-self/ns/net", visit->path, "none", MS_BIND, NULL) < 0)
		failed(visit, "mount");
	return NULL;
}

int ls_netns_create(const char *path, const char **step)
{
	struct visit visit = { .path = path, .step = "" };
	int rc = run_in_thread(create_body, &visit);

	*step = visit.step;
	return rc;
}

int ls_netns_unmount(const char *path)
{
	/* Something may have been mounted on top; EINVAL says that nothing is left. */
	while (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		;
	return errno == EINVAL || errno == ENOENT ? 0 : -errno;
}

int ls_netns_prepare_directory(const char *path, const char **step)
{
	*step = "mount(MS_SHARED)";
	if (mount("", path, "none", MS_SHARED | MS_REC, NULL) == 0)
		return 0;
	if (errno != EINVAL) /* EINVAL: not a mount point yet */
		return -errno;
	*step = "mount(MS_BIND)";
	if (mount(path, path, "none", MS_BIND | MS_REC, NULL) < 0)
		return -errno;
	*step = "mount(MS_SHARED)";
	return mount("", path, "none", MS_SHARED | MS_REC, NULL) < 0 ? -errno : 0;
}

/* Opens a network namespace's file; EINVAL for a file that is something else. */
static int open_netns(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct statfs fs;

	if (fd < 0)
		return -1;
	if (fstatfs(fd, &fs) == 0 && fs.f_type == NSFS_MAGIC && ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET)
		return fd;
	close(fd);
	errno = EINVAL;
	return -1;
}

int ls_netns_check(const char *path)
{
	int fd = open_netns(path);

	if (fd >= 0) {
		close(fd);
		return 1;
	}
	return errno == EINVAL ? 0 : -errno;
}

static int enter(struct visit *visit)
{
	int rc, fd = open_netns(visit->path);

	if (fd < 0)
		return failed(visit, errno == EINVAL ? "not a network namespace" : "open");
	rc = setns(fd, CLONE_NEWNET);
	if (rc < 0)
		failed(visit, "setns");
	close(fd);
	return rc;
}

static void *socket_body(void *arg)
{
	struct visit *visit = arg;

	if (enter(visit) < 0)
		return NULL;
	visit->result = socket(visit->family, visit->type | SOCK_CLOEXEC, visit->protocol);
	if (visit->result < 0)
		failed(visit, "socket");
	return NULL;
}

int ls_netns_open_socket(const char *path, int family, int type, int protocol, const char **step)
{
	struct visit visit = { .path = path, .step = "", .family = family, .type = type, .protocol = protocol };
	int rc = run_in_thread(socket_body, &visit);

	*step = visit.step;
	return rc;
}

int ls_netns_enter(const char *path, const char **step)
{
	struct visit visit = { .path = path, .step = "" };

	enter(&visit);
	*step = visit.step;
	return visit.result;
}

int ls_netns_unshare(void)
{
	return unshare(CLONE_NEWNET) < 0 ? -errno : 0;
}
