/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The round trip that TCP knows of, read from the socket that a packet was sent from: it comes with the packet as far as an
 * endpoint's host end, out of its network namespace (kernel commit 9c4c325252c5, Linux 4.20). No packet is sent for it, and
 * nothing is asked of TCP.
 */
#ifndef LINKSPAN_TCP_H
#define LINKSPAN_TCP_H

#include "l4.h"
#include "latency.h"

/* Whether the packet, which a TCP socket has sent, has data: its own or, in a tunnel, another packet. */
LS_INLINE int ls_has_data(const struct __sk_buff *skb)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 headers;

	if ((void *)(eth + 1) + sizeof(struct iphdr) > (void *)(long)skb->data_end)
		return 0;
	headers = ls_l4_headers(skb, eth);
	return headers && skb->len > ETH_HLEN + headers;
}

/* The smoothed round trip of the connection that the packet is of; 0 if none is known. Who has only acknowledged for a while
 * knows none that is worth telling, so it is that of packets with data alone. */
LS_INLINE __u64 ls_tcp_rtt_ns(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct bpf_tcp_sock *tcp;

	if (!sk)
		return 0;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	tcp = bpf_tcp_sock(sk);
	if (!tcp || !ls_has_data(skb))
		return 0;
	return (tcp->srtt_us >> 3) * 1000ULL; /* it is kept in eighths */
}

/* Counts the round trip of the connection that a packet of the endpoint with this slot is of. */
LS_INLINE void ls_add_tcp_rtt(struct __sk_buff *skb, __u32 slot)
{
	__u64 ns = ls_tcp_rtt_ns(skb);

	if (ns)
		ls_add_latency(slot, LS_LATENCY_TCP_RTT, ns);
}

/* For a packet that has arrived from its endpoint: what is spent here is no part of its own time. */
LS_INLINE void ls_sent(struct ls_sampling *sample, struct __sk_buff *skb, __u32 slot)
{
	__u64 now;

	if (likely(!sample->begin_ns))
		return;
	now = bpf_ktime_get_ns();
	ls_add_tcp_rtt(skb, slot);
	sample->begin_ns += bpf_ktime_get_ns() - now;
}

/* For a packet on its way out of a device, where no arrival is timed. */
LS_INLINE void ls_leaves(struct __sk_buff *skb, __u32 slot)
{
	__u32 first = 0;
	struct ls_sampling *sample = sampling.lookup(&first);

	if (sample && unlikely(ls_is_sampled(sample)))
		ls_add_tcp_rtt(skb, slot);
}

#endif
