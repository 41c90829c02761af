/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * At the root of the cgroups, hence for the sockets of all processes: the round trips that TCP measures on connections of
 * endpoints. No packet is sent or looked at for it.
 *
 * A connection whose own address is an endpoint's is told of when it is established, and from then on at each of its round
 * trips (BPF_SOCK_OPS_RTT_CB_FLAG), of which one in LS_RTT_EVERY is added to the endpoint's histogram. Other sockets cost a
 * look-up when they are established, and nothing later. Where several linkspands share a machine each has this program at
 * the root, and is told of the others' connections too.
 */
#include "maps.h"
#include "lib/latency.h"

#define LS_RTT_EVERY 16
#define LS_AF_INET 2

/* IPv4 addresses as in ::ffff:0:0/96, whatever the family of the socket. */
LS_INLINE void ls_set_address(struct ls_tcp_local_key *key, int is_ip4, __be32 ip4, __be32 first, __be32 second, __be32 third,
			      __be32 last)
{
	__be32 *words = (__be32 *)key->address;

	/* Else clang chooses between two pointers into the context, and the verifier refuses what it reads through one. */
	LS_HIDE(ip4);
	words[0] = is_ip4 ? 0 : first;
	words[1] = is_ip4 ? 0 : second;
	words[2] = is_ip4 ? bpf_htonl(0xffff) : third;
	words[3] = is_ip4 ? ip4 : last;
}

/* The slot of the endpoint that has the connection. Null for others' connections, and for those that both ends of are in one
 * sandbox: no network is between them. */
LS_INLINE const __u32 *ls_slot_of(struct bpf_sock_ops *ops)
{
	struct ls_tcp_local_key key = { .netns_cookie = bpf_get_netns_cookie(ops) };
	int is_ip4 = ops->family == LS_AF_INET;
	const __u32 *slot;

	ls_set_address(&key, is_ip4, ops->local_ip4, ops->local_ip6[0], ops->local_ip6[1], ops->local_ip6[2],
		       ops->local_ip6[3]);
	slot = tcp_locals.lookup(&key);
	if (!slot)
		return 0;
	ls_set_address(&key, is_ip4, ops->remote_ip4, ops->remote_ip6[0], ops->remote_ip6[1], ops->remote_ip6[2],
		       ops->remote_ip6[3]);
	return tcp_locals.lookup(&key) ? 0 : slot;
}

/* Whether this round trip is one of those that are counted, at random as arrivals are (lib/latency.h). */
LS_INLINE int ls_is_sampled(void)
{
	__u32 first = 0, *left = rtt_left.lookup(&first);

	if (!left)
		return 0;
	if (likely(*left)) {
		*left -= 1;
		return 0;
	}
	*left = bpf_get_prandom_u32() % (2 * LS_RTT_EVERY - 1);
	return 1;
}

/* Returns 1 always: the socket goes on as it would. */
int ls_tcp_rtt(struct bpf_sock_ops *ops)
{
	const __u32 *slot;
	__u32 us = 0;

	switch (ops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		if (!ls_slot_of(ops))
			return 1;
		bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG);
		break; /* the handshake was a round trip too */
	case BPF_SOCK_OPS_RTT_CB:
		us = ops->args[0];
		break;
	default:
		return 1;
	}
	if (!ls_is_sampled())
		return 1;
	/* Before Linux 6.10 (48e2cd3e3dcf) there is no argument, and another's program here may have left its reply in its place,
	 * -1 mostly. What is left then is the smoothed round trip, in eighths. */
	if ((__s32)us <= 0)
		us = ops->srtt_us >> 3;
	slot = us ? ls_slot_of(ops) : 0;
	if (slot)
		ls_add_latency(*slot, LS_LATENCY_TCP_RTT, us * 1000ULL);
	return 1;
}
