/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Packets between endpoints of two hosts on one layer 2 segment, without VXLAN: on the way they have the MACs of the two
 * hosts, and are the same from the network header on. Only what is from an endpoint's own address for another's goes so,
 * because the addresses alone say which network it is of.
 */
#ifndef LINKSPAN_DIRECT_H
#define LINKSPAN_DIRECT_H

#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include "flow.h"
#include "nd.h"

/* An IPv4 address as ls_node has it. */
LS_INLINE void ls_map_ip4(void *address, __be32 ip4)
{
	__u64 *words = address;

	words[0] = 0;
	words[1] = (__u64)ip4 << 32 | bpf_htonl(0xffff);
}

/* Has a flow that is looked up take VXLAN as long as the peer's host may not know the sender, which is always where the
 * sender takes no direct packets itself. */
LS_INLINE void ls_wait_for_direct(struct ls_flow *flow)
{
	struct ls_direct_key own __attribute__((aligned(8)));
	const struct ls_direct *sender;

	if (likely(!(flow->peer.flags & LS_PEER_DIRECT)))
		return;
	if (flow->endpoint.ip4)
		ls_map_ip4(&own, flow->endpoint.ip4);
	else
		__builtin_memcpy(&own, flow->endpoint.ip6, sizeof(own));
	sender = direct.lookup(&own);
	if (sender && sender->from_ns <= bpf_ktime_get_ns())
		return;
	flow->peer.flags = 0;
	if (sender)
		flow->epoch = 0; /* never now: looked up again each time */
}

/* The Ethernet header and an IPv4 header's length have been found to be there. */
LS_INLINE int ls_is_direct(const struct __sk_buff *skb, const struct ls_flow *flow)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (void *)(long)skb->data;
	const struct iphdr *ip = (void *)(eth + 1);
	const struct ipv6hdr *ip6 = (void *)(eth + 1);

	if (!(flow->peer.flags & LS_PEER_DIRECT) || (void *)(ip + 1) > data_end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return ip->daddr && ip->daddr == flow->peer.ip4 && ip->saddr == flow->endpoint.ip4;
	return (void *)(ip6 + 1) <= data_end && !ls_ip6_is_zero(flow->peer.ip6) &&
	       ls_ip6_equal(&ip6->daddr, flow->peer.ip6) && ls_ip6_equal(&ip6->saddr, flow->endpoint.ip6);
}

LS_INLINE int ls_send_direct(struct __sk_buff *skb, const struct ls_node *node)
{
	struct {
		__u8 to[ETH_ALEN], from[ETH_ALEN];
	} macs;

	__builtin_memcpy(macs.to, node->mac, ETH_ALEN);
	__builtin_memcpy(macs.from, node->local_mac, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, &macs, sizeof(macs), 0))
		return TC_ACT_SHOT; /* out of memory */
	return bpf_redirect(node->ifindex, 0);
}

#endif
