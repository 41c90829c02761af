/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The flow cache: what the maps said of the last pairs of sender and destination MAC, in one lookup that the JIT
 * inlines instead of two hash lookups. An entry holds as long as the epoch that it was made in.
 */
#ifndef LINKSPAN_FLOW_H
#define LINKSPAN_FLOW_H

#include "eth.h"

/* Multipliers of common hash functions (Knuth's golden ratio, murmur3's first finaliser). Sums would not do: ifindexes
 * and MACs count up together, and both directions of a flow would meet. */
LS_INLINE __u32 ls_flow_index(__u32 sender, const __u8 *mac)
{
	return (((sender * 0x9e3779b1) ^ ls_load32(mac + 2)) * 0x85ebca6b) >> (32 - LS_FLOW_BITS);
}

/* The only place for the flow of a sender's packet, whoever's flow is there now. `sender` is a number that tells senders
 * apart. */
LS_INLINE struct ls_flow *ls_flow_place(const struct __sk_buff *skb, __u32 sender)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 index;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return 0;
	index = ls_flow_index(sender, eth->h_dest);
	return flows.lookup(&index);
}

/* The epoch has to be read before the maps are: an entry made while they change is then outdated from the start. x86-64
 * keeps loads in order; a machine that doesn't would need a read barrier between, which BPF programs don't have. */
LS_INLINE __u64 ls_flow_epoch(void)
{
#ifdef LS_TRACE
	return bpf_ktime_get_ns(); /* a new one for each packet: all is looked up, and told */
#else
	__u32 first = 0;
	const __u64 *now = epoch.lookup(&first);

	return now ? *now : 0;
#endif
}

/* True if the place holds this packet's flow. */
LS_INLINE int ls_flow_is(const struct ls_flow *flow, const struct __sk_buff *skb, __u32 ifindex, __u64 now)
{
	const struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return 0;
	return flow->ifindex == ifindex && flow->epoch == now && ls_mac_equal(eth->h_dest, flow->mac) &&
	       ls_mac_equal(eth->h_source, flow->endpoint.mac);
}

/* Nothing else runs on this CPU's copy meanwhile: see ep_counters. */
LS_INLINE void ls_flow_keep(struct ls_flow *flow, __u32 ifindex, __u64 now, const __u8 *mac,
			    const struct ls_endpoint *ep, const struct ls_fdb *to)
{
	flow->ifindex = ifindex;
	flow->epoch = now;
	__builtin_memcpy(flow->mac, mac, ETH_ALEN);
	flow->to = *to;
	flow->endpoint = *ep;
	flow->peer.vni = 0;
}

#endif
