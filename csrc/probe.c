/* SPDX-License-Identifier: Apache-2.0 */
/* Messages between two sockets of this process. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "native.h"

#define MESSAGE_MAX 65536

static __u64 now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static int hand_over(int from, int to, char *message, __u32 size)
{
	ssize_t received;

	if (send(from, message, size, MSG_NOSIGNAL) != (ssize_t)size)
		return -errno;
	received = recv(to, message, size, MSG_WAITALL);
	if (received < 0)
		return -errno;
	return received == (ssize_t)size ? 0 : -EPIPE;
}

int ls_probe_messages(int a, int b, __u32 size, __u32 count, int is_answered, __u64 *ns)
{
	char message[MESSAGE_MAX];
	int result;

	if (!size || size > MESSAGE_MAX)
		return -EINVAL;
	memset(message, 'x', size);
	for (__u32 trip = 0; trip < count; trip++) {
		__u64 begin = now_ns();

		result = hand_over(a, b, message, size);
		if (!result && is_answered)
			result = hand_over(b, a, message, size);
		if (result)
			return result;
		ns[trip] = now_ns() - begin;
	}
	return count;
}
