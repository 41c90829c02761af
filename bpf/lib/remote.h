/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The way of a checked packet to an endpoint of another host: the outer headers in front of it, and out; or without them
 * where that host takes it so.
 */
#ifndef LINKSPAN_REMOTE_H
#define LINKSPAN_REMOTE_H

#include "check.h"
#include "direct.h"
#include "flow.h"
#include "l4.h"
#include "tunnel.h"

/* bcc's helpers.h leaves out plen. */
static int (*ls_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int plen, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

/* What is read of the packet before it changes. */
struct ls_inner {
	__u32 len;  /* with its Ethernet header */
	__u32 hash; /* the same for all packets of a flow */
	__be16 proto_be;
	__u8 class; /* DSCP and ECN */
};

/* Whether the packet, or each of its segments, fits the way with `overhead` bytes more. A packet that does not is the
 * kernel's, which tells the sender (RFC 1191, RFC 8201). */
LS_INLINE int ls_fits_way(const struct __sk_buff *skb, const struct ethhdr *eth, const struct ls_node *node,
			  __u32 overhead)
{
	__u32 header;

	if (skb->len - ETH_HLEN + overhead <= node->mtu)
		return 1;
	if (!skb->gso_size || skb->len + overhead > 0xffff)
		return 0;
	header = ls_l4_headers(skb, eth);
	return header && header + skb->gso_size + overhead <= node->mtu;
}

LS_INLINE void ls_fill_tunnel(struct ls_tunnel *in, const struct ls_inner *inner, const struct ls_flow *flow)
{
	in->udp.source = bpf_htons(0xc000 | inner->hash >> (32 - LS_PORTS_BITS));
	in->udp.dest = bpf_htons(LS_VXLAN_PORT);
	in->udp.len = bpf_htons(inner->len - ETH_HLEN + sizeof(*in));
	in->udp.check = 0; /* RFC 7348, 4; IPv6: RFC 6935 */
	in->vxlan.flags_be = bpf_htonl(LS_VXLAN_HAS_VNI);
	in->vxlan.vni_be = bpf_htonl(flow->peer.vni << 8);
	__builtin_memcpy(in->eth.h_dest, flow->mac, ETH_ALEN);
	__builtin_memcpy(in->eth.h_source, flow->endpoint.mac, ETH_ALEN);
	in->eth.h_proto = inner->proto_be;
}

#define LS_PUSH_FLAGS \
	(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | \
	 BPF_F_ADJ_ROOM_ENCAP_L2_ETH)

/* These two return 0, and have changed nothing, if the kernel does not do it with such a packet; or else a TC_ACT_*. */
LS_INLINE int ls_push4(struct __sk_buff *skb, const struct ls_inner *inner, const struct ls_flow *flow,
		       const struct ls_node *node, __u16 id)
{
	struct bpf_redir_neigh next = { .nh_family = LS_AF_INET, .ipv4_nh = ls_load32(node->next_hop + 12) };
	struct ls_tunnel4 outer __attribute__((aligned(8))) = {}; /* else written byte by byte: it is packed */
	__u32 local = ls_load32(node->local + 12), remote = ls_load32(node->remote + 12);

	if (bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, LS_PUSH_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
		return 0;
	outer.ip.version = 4;
	outer.ip.ihl = sizeof(outer.ip) / 4;
	outer.ip.tos = inner->class;
	outer.ip.tot_len = bpf_htons(inner->len - ETH_HLEN + sizeof(outer));
	outer.ip.id = id;
	outer.ip.ttl = LS_TTL;
	outer.ip.protocol = IPPROTO_UDP;
	outer.ip.saddr = local;
	outer.ip.daddr = remote;
	outer.ip.check = ls_fold(bpf_htons(0x4500 | inner->class) + outer.ip.tot_len + id +
				 bpf_htons(LS_TTL << 8 | IPPROTO_UDP) + (local & 0xffff) + (local >> 16) +
				 (remote & 0xffff) + (remote >> 16));
	ls_fill_tunnel(&outer.in, inner, flow);
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0))
		return TC_ACT_SHOT; /* out of memory */
	return ls_redirect_neigh(node->ifindex, &next, sizeof(next), 0);
}

LS_INLINE int ls_push6(struct __sk_buff *skb, const struct ls_inner *inner, const struct ls_flow *flow,
		       const struct ls_node *node)
{
	struct bpf_redir_neigh next = { .nh_family = LS_AF_INET6 };
	struct ls_tunnel6 outer __attribute__((aligned(8))) = {};

	if (bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, LS_PUSH_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6))
		return 0;
	*(__be32 *)&outer.ip6 = bpf_htonl(6 << 28 | inner->class << 20);
	outer.ip6.payload_len = bpf_htons(inner->len - ETH_HLEN + sizeof(outer.in));
	outer.ip6.nexthdr = IPPROTO_UDP;
	outer.ip6.hop_limit = LS_TTL;
	__builtin_memcpy(&outer.ip6.saddr, node->local, sizeof(outer.ip6.saddr));
	__builtin_memcpy(&outer.ip6.daddr, node->remote, sizeof(outer.ip6.daddr));
	ls_fill_tunnel(&outer.in, inner, flow);
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0))
		return TC_ACT_SHOT; /* out of memory */
	__builtin_memcpy(next.ipv6_nh, node->next_hop, sizeof(next.ipv6_nh));
	return ls_redirect_neigh(node->ifindex, &next, sizeof(next), 0);
}

/* Sends a packet of the flow to the peer's node; TC_ACT_*, or 0 if it is to be left to the kernel, unchanged. */
LS_INLINE int ls_send_remote(struct __sk_buff *skb, struct ls_flow *flow)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 number = flow->peer.node;
	const struct ls_node *node = nodes.lookup(&number);
	struct ls_inner inner;
	int is_ip4;

	if (!node || !node->ifindex || (void *)(eth + 1) + sizeof(struct iphdr) > (void *)(long)skb->data_end) {
		LS_TELL(NO_WAY, number);
		return 0;
	}
	inner.proto_be = eth->h_proto;
	if (inner.proto_be != bpf_htons(ETH_P_IP) && inner.proto_be != bpf_htons(ETH_P_IPV6))
		return 0;
	if (ls_is_direct(skb, flow) && ls_fits_way(skb, eth, node, 0)) {
		LS_TELL(DIRECT, number);
		return ls_send_direct(skb, node);
	}
	is_ip4 = ls_is_mapped(node->remote);
	if (!ls_fits_way(skb, eth, node, is_ip4 ? sizeof(struct ls_tunnel4) : sizeof(struct ls_tunnel6))) {
		LS_TELL(WAY_TOO_SMALL, node->mtu);
		return 0;
	}
	LS_TELL(VXLAN, flow->peer.vni);
	inner.len = skb->len;
	inner.class = ls_traffic_class(eth + 1, inner.proto_be);
	inner.hash = bpf_get_hash_recalc(skb);
	/* May be fragmented on its way, as the VXLAN device's packets may, and so is told from others (RFC 6864). */
	return is_ip4 ? ls_push4(skb, &inner, flow, node, flow->ip4_id++) : ls_push6(skb, &inner, flow, node);
}

/* The exit of a packet that is for a peer. */
LS_INLINE int ls_exit_remote(struct __sk_buff *skb, struct ls_flow *flow, struct ls_sampling *sample)
{
	__u64 packets = ls_wire_packets(skb), bytes = skb->len;
	struct ls_counters *counters = ep_counters.lookup(&flow->endpoint.slot);
	int action;

	ls_sent(sample, skb, flow->endpoint.slot);
	action = ls_send_remote(skb, flow);

	if (!counters)
		return action ? action : TC_ACT_UNSPEC;
	if (unlikely(!action)) {
		counters->out_slow_packets += packets;
		counters->out_slow_bytes += bytes;
		return TC_ACT_UNSPEC;
	}
	counters->out_fast_packets += packets;
	counters->out_fast_bytes += bytes;
	return action;
}

#endif
