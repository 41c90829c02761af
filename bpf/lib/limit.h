/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A limit on what is copied to everybody: broadcast and the groups that every host is in (RFC 1112, 4; RFC 4291, 2.8).
 * Other multicast goes to those who asked for it.
 */
#ifndef LINKSPAN_LIMIT_H
#define LINKSPAN_LIMIT_H

#include "eth.h"

#define LS_SECOND_NS 1000000000ULL

/* For packets: ff:ff:ff:ff:ff:ff, 01:00:5e:00:00:01, 33:33:00:00:00:01. */
LS_INLINE int ls_is_for_all(const __u8 *mac)
{
	if (likely(!ls_is_group(mac)))
		return 0;
	if (ls_is_broadcast(mac))
		return 1;
	return (ls_load32(mac) == bpf_htonl(0x01005e00) || ls_load32(mac) == bpf_htonl(0x33330000)) &&
	       ls_load16(mac + 4) == bpf_htons(1);
}

/* A bucket that holds the packets of one second (the generic cell rate algorithm, ITU-T I.371): true if the endpoint
 * may send one more, which it then has. */
LS_INLINE int ls_may_send(__u32 slot)
{
	struct ls_limit *limit = limits.lookup(&slot);
	__u64 now, spent;

	if (!limit || !limit->cost_ns)
		return 1;
	now = bpf_ktime_get_ns();
	spent = limit->spent > now ? limit->spent : now;
	if (spent + limit->cost_ns > now + LS_SECOND_NS)
		return 0;
#ifndef LS_TRACE
	limit->spent = spent + limit->cost_ns;
#endif
	return 1;
}

#endif
