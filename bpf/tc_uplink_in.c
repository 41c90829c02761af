// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_uplink_in: tc ingress of a device that leads to other hosts. Takes a packet that an endpoint of another host has sent
 * in VXLAN (RFC 7348) out of it and straight into the sandbox of the endpoint that it is for; drops one whose sender is no
 * endpoint of the host that it came from. Everything else is the kernel's, unchanged: what is from or for an unknown host,
 * of an unknown VNI, for a group or an unknown endpoint, fragmented, marked on the way as having met congestion (RFC 6040),
 * or not IP. Reads epoch, nodes, node_by_ip, vnis, fdb and peers, writes ep_counters, ep_drops and its own arrivals.
 */
#include "lib/eth.h"
#include "lib/flow.h"
#include "lib/fits.h"
#include "lib/tunnel.h"
#include "lib/verdict.h"

/* Since Linux 6.3: the inner packet's family may differ. An older kernel refuses, and the packet is left to it. */
#define LS_POP_TO_IPV4 (1ULL << 7)
#define LS_POP_TO_IPV6 (1ULL << 8)

/* All that is read of a packet: the longest of the outer headers, and of the inner network header. */
#define LS_HEADERS (ETH_HLEN + sizeof(struct ls_tunnel6) + sizeof(struct ipv6hdr))

/* What tells an arrival from others; IPv4 addresses are mapped as in ls_node. */
struct ls_arrival_key {
	__u8 from[16];
	__u8 at[16];
	__u8 macs[12]; /* destination and source */
	__be32 vni_be;
};

/* What the maps said of the last ones, as flow.h does it for what endpoints send. */
struct ls_arrival {
	__u64 epoch;
	struct ls_arrival_key key;
	struct ls_fdb to; /* ifindex 0: the kernel's */
};
LS_PRIVATE_MAP("percpu_array", __u32, struct ls_arrival, arrivals, 1 << LS_FLOW_BITS, 0);

/* Whether the inner packet, behind headers of `overhead` bytes, is one that the fast path can pop. Of GSO packets only TCP
 * is: that they were tunnelled stays in their type, at which TCP does not look, but UDP does (net/ipv4/udp_offload.c). One
 * whose inner length is not its own is several tunnelled packets, and not one of a tunnel. */
LS_INLINE int ls_can_pop(const struct __sk_buff *skb, const struct ls_tunnel *in, __u32 overhead, __u8 class)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct iphdr *ip = (void *)(in + 1);
	const struct ipv6hdr *ip6 = (void *)(in + 1);
	__u32 len = skb->len - ETH_HLEN - overhead;

	if (in->udp.dest != bpf_htons(LS_VXLAN_PORT) || in->udp.check ||
	    in->vxlan.flags_be != bpf_htonl(LS_VXLAN_HAS_VNI) || (in->vxlan.vni_be & bpf_htonl(0xff)) ||
	    ls_is_group(in->eth.h_dest) || (class & LS_ECN_MASK) == LS_ECN_CE)
		return 0;
	if (in->eth.h_proto == bpf_htons(ETH_P_IP))
		return (void *)(ip + 1) <= data_end &&
		       (!skb->gso_size || (ip->protocol == IPPROTO_TCP && bpf_ntohs(ip->tot_len) == len));
	if (in->eth.h_proto == bpf_htons(ETH_P_IPV6))
		return (void *)(ip6 + 1) <= data_end &&
		       (!skb->gso_size || (ip6->nexthdr == IPPROTO_TCP &&
					   bpf_ntohs(ip6->payload_len) + sizeof(*ip6) == len));
	return 0;
}

LS_INLINE void ls_map_address(__u8 *mapped, __be32 ip4)
{
	*(__u64 *)mapped = 0;
	*(__be32 *)(mapped + 8) = bpf_htonl(0xffff);
	*(__be32 *)(mapped + 12) = ip4;
}

/* Finds the tunnel's headers and fills the key. Returns the length of what is in front of the inner network header and
 * behind the outer Ethernet header, 0 if the packet is no business of this program. */
LS_INLINE __u32 ls_parse(const struct __sk_buff *skb, struct ls_arrival_key *key, __be16 *proto_be)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (void *)(long)skb->data;
	const struct ls_tunnel *in;
	__u32 overhead;
	__u8 class;

	if ((void *)(eth + 1) > data_end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		const struct ls_tunnel4 *outer = (void *)(eth + 1);

		if ((void *)(outer + 1) > data_end || *(const __u8 *)outer != 0x45 || outer->ip.protocol != IPPROTO_UDP ||
		    (outer->ip.frag_off & bpf_htons(0x3fff)))
			return 0;
		ls_map_address(key->from, outer->ip.saddr);
		ls_map_address(key->at, outer->ip.daddr);
		class = outer->ip.tos;
		overhead = sizeof(*outer);
		in = &outer->in;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		const struct ls_tunnel6 *outer = (void *)(eth + 1);

		if ((void *)(outer + 1) > data_end || *(const __u8 *)outer >> 4 != 6 ||
		    outer->ip6.nexthdr != IPPROTO_UDP)
			return 0;
		__builtin_memcpy(key->from, &outer->ip6.saddr, sizeof(key->from));
		__builtin_memcpy(key->at, &outer->ip6.daddr, sizeof(key->at));
		class = ls_traffic_class(outer, bpf_htons(ETH_P_IPV6));
		overhead = sizeof(*outer);
		in = &outer->in;
	} else {
		return 0;
	}
	if (!ls_can_pop(skb, in, overhead, class))
		return 0;
	__builtin_memcpy(key->macs, &in->eth, sizeof(key->macs));
	key->vni_be = in->vxlan.vni_be;
	*proto_be = in->eth.h_proto;
	return overhead;
}

LS_INLINE int ls_is_arrival(const struct ls_arrival *known, const struct ls_arrival_key *key, __u64 now)
{
	const void *a = &known->key, *b = key;
	__u64 differs = known->epoch ^ now;

#pragma unroll
	for (int i = 0; i < (int)sizeof(*key); i += 8)
		differs |= *(const __u64 *)(a + i) ^ *(const __u64 *)(b + i);
	return !differs;
}

/* What the maps say. Returns 0, or the drop reason negated. */
LS_INLINE int ls_learn(struct ls_arrival *arrival, const struct ls_arrival_key *key, __u64 now)
{
	struct ls_node_key from;
	struct ls_fdb_key mac = {};
	__u32 vni = bpf_ntohl(key->vni_be) >> 8;
	const struct ls_peer *sender;
	const struct ls_node *node;
	const struct ls_fdb *to;
	const __u32 *number, *segment;

	arrival->epoch = now;
	arrival->key = *key;
	arrival->to.ifindex = 0; /* the kernel's */
	segment = vnis.lookup(&vni);
	if (!segment)
		return 0;
	__builtin_memcpy(from.remote, key->from, sizeof(from.remote));
	number = node_by_ip.lookup(&from);
	node = number ? nodes.lookup((__u32 *)number) : 0;
	if (!node || ls_load64(node->local) != ls_load64(key->at) || ls_load64(node->local + 8) != ls_load64(key->at + 8))
		return 0;
	mac.segment = *segment;
	__builtin_memcpy(mac.mac, key->macs, ETH_ALEN);
	to = fdb.lookup(&mac);
	if (!to)
		return 0;
	arrival->to.slot = to->slot;
	__builtin_memcpy(mac.mac, key->macs + ETH_ALEN, ETH_ALEN);
	sender = peers.lookup(&mac);
	if (sender ? sender->node != *number : !!fdb.lookup(&mac)) {
		arrival->epoch = 0; /* never now: looked up again each time */
		return -LS_DROP_SPOOFED_PEER;
	}
	if (sender)
		arrival->to.ifindex = to->ifindex;
	return 0;
}

/* Outer headers off, the inner Ethernet header in the place of the outer one, and on into the sandbox. TC_ACT_UNSPEC if
 * the kernel does not do it with such a packet, which then is as it was. The outer UDP header was not checked, so what the
 * device vouches for is one checksum less (__skb_decr_checksum_unnecessary in include/linux/skbuff.h). */
LS_INLINE int ls_pop(struct __sk_buff *skb, const struct ls_arrival_key *key, __u32 overhead, __be16 proto_be,
		     __u32 ifindex)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET;
	struct ethhdr eth;

	if (proto_be != skb->protocol)
		flags |= proto_be == bpf_htons(ETH_P_IP) ? LS_POP_TO_IPV4 : LS_POP_TO_IPV6;
	if (bpf_skb_adjust_room(skb, -(__s32)overhead, BPF_ADJ_ROOM_MAC, flags))
		return TC_ACT_UNSPEC;
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	__builtin_memcpy(&eth, key->macs, sizeof(key->macs));
	eth.h_proto = proto_be;
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0))
		return TC_ACT_SHOT; /* out of memory */
	return bpf_redirect_peer(ifindex, 0);
}

/* Has the headers lie where they can be read: a device may leave all but the first few in fragments. */
LS_INLINE void ls_pull_headers(struct __sk_buff *skb)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (void *)(long)skb->data;
	const __u8 *ip = (void *)(eth + 1);
	__u32 len = skb->len < LS_HEADERS ? skb->len : LS_HEADERS;

	if (likely((void *)eth + LS_HEADERS <= data_end) || (void *)ip + sizeof(struct iphdr) > data_end ||
	    (void *)eth + len <= data_end)
		return;
	if (ip[eth->h_proto == bpf_htons(ETH_P_IP) ? 9 : 6] == IPPROTO_UDP)
		bpf_skb_pull_data(skb, len);
}

LS_INLINE struct ls_arrival *ls_arrival_place(const struct ls_arrival_key *key)
{
	__u32 index = ls_flow_index(ls_load32(key->macs + 8) ^ key->vni_be, key->macs);

	return arrivals.lookup(&index);
}

int ls_uplink_in(struct __sk_buff *skb)
{
	struct ls_arrival_key key;
	struct ls_arrival *arrival;
	__u64 now = ls_flow_epoch();
	__u64 packets = ls_wire_packets(skb);
	struct ls_counters *counters;
	__be16 proto_be;
	__u32 overhead;
	int dropped, action;

	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_UNSPEC;
	ls_pull_headers(skb);
	overhead = ls_parse(skb, &key, &proto_be);
	if (!overhead)
		return TC_ACT_UNSPEC;
	arrival = ls_arrival_place(&key);
	if (!arrival)
		return TC_ACT_UNSPEC;
	if (!likely(ls_is_arrival(arrival, &key, now))) {
		dropped = ls_learn(arrival, &key, now);
		if (dropped) {
			ls_count_drop(arrival->to.slot, -dropped);
			return TC_ACT_SHOT;
		}
	}
	if (!arrival->to.ifindex || !ls_fits(skb, arrival->to.ifindex, overhead))
		return TC_ACT_UNSPEC;
	action = ls_pop(skb, &key, overhead, proto_be, arrival->to.ifindex);
	counters = action == TC_ACT_UNSPEC ? 0 : ep_counters.lookup(&arrival->to.slot);
	if (counters) {
		counters->in_fast_packets += packets;
		counters->in_fast_bytes += skb->len;
	}
	return action;
}
