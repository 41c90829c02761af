// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_uplink_in: tc ingress of a device that leads to other hosts. Takes a packet that an endpoint of another host has sent
 * in VXLAN (RFC 7348) out of it and straight into the sandbox of the endpoint that it is for, and one that was sent
 * without (lib/direct.h) likewise; drops one whose sender is no endpoint of the host that it came from. Everything else is
 * the kernel's, unchanged: what is from or for an unknown host, of an unknown VNI, for a group or an unknown endpoint,
 * fragmented or marked as having met congestion (RFC 6040) outside of the VXLAN, or not IP. Reads epoch, nodes, node_by_ip,
 * vnis, fdb, peers, direct, neigh4 and neigh6, writes ep_counters, ep_drops, sampling, latencies
 * and its own arrivals.
 */
#include "lib/arrival.h"
#include "lib/check.h"
#include "lib/direct.h"
#include "lib/fits.h"
#include "lib/flow.h"
#include "lib/tunnel.h"
#include "lib/verdict.h"

/* Since Linux 6.3: the inner packet's family may differ. An older kernel refuses, and the packet is left to it. */
#define LS_POP_TO_IPV4 (1ULL << 7)
#define LS_POP_TO_IPV6 (1ULL << 8)

/* All that is read of a packet: the outer headers, and the longest of the inner network header. */
#define LS_HEADERS(tunnel) (ETH_HLEN + sizeof(struct tunnel) + sizeof(struct ipv6hdr))

/* All that is read of one without VXLAN. */
#define LS_DIRECT_HEADERS (ETH_HLEN + sizeof(struct ipv6hdr))

/* The headers of a packet behind its outer Ethernet header. */
struct ls_headers {
	__u32 overhead; /* bytes from there to the inner network header */
	const struct udphdr *udp;
	const struct ls_vxlan *vxlan;
	const struct ethhdr *eth;
	const void *inner;
	__u8 class;
};

/* Whether the inner packet is one that the fast path can pop. Of GSO packets only TCP is: that they were tunnelled stays in
 * their type, at which TCP does not look, but UDP does (net/ipv4/udp_offload.c). One whose inner length is not its own is
 * several tunnelled packets, and not one of a tunnel. */
LS_INLINE int ls_can_pop(const struct __sk_buff *skb, const struct ls_headers *at)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct iphdr *ip = at->inner;
	const struct ipv6hdr *ip6 = at->inner;
	__u32 len = skb->len - ETH_HLEN - at->overhead;

	if (at->udp->dest != bpf_htons(LS_VXLAN_PORT) || at->udp->check ||
	    at->vxlan->flags_be != bpf_htonl(LS_VXLAN_HAS_VNI) || (at->vxlan->vni_be & bpf_htonl(0xff)) ||
	    ls_is_group(at->eth->h_dest) || (at->class & LS_ECN_MASK) == LS_ECN_CE)
		return 0;
	if (at->eth->h_proto == bpf_htons(ETH_P_IP))
		return (void *)(ip + 1) <= data_end &&
		       (likely(!skb->gso_size) || (ip->protocol == IPPROTO_TCP && bpf_ntohs(ip->tot_len) == len));
	if (at->eth->h_proto == bpf_htons(ETH_P_IPV6))
		return (void *)(ip6 + 1) <= data_end &&
		       (likely(!skb->gso_size) || (ip6->nexthdr == IPPROTO_TCP &&
						   bpf_ntohs(ip6->payload_len) + sizeof(*ip6) == len));
	return 0;
}

/* Finds the headers and fills the key; 0 if the packet is no business of this program. */
LS_INLINE int ls_parse(const struct __sk_buff *skb, struct ls_headers *at, struct ls_arrival_key *key)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (void *)(long)skb->data;
	const struct iphdr *ip = (void *)(eth + 1);
	const struct ipv6hdr *ip6 = (void *)(eth + 1);

	if ((void *)ip + sizeof(struct ls_tunnel4) > data_end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if (*(const __u8 *)ip != LS_IP4_NO_OPTIONS || ip->protocol != IPPROTO_UDP || (ip->frag_off & bpf_htons(0x3fff)))
			return 0;
		key->from[0] = key->at[0] = 0;
		key->from[1] = ip->saddr;
		key->at[1] = ip->daddr;
		at->overhead = sizeof(struct ls_tunnel4);
		at->class = ip->tos;
		at->udp = (void *)(ip + 1);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if ((void *)ip6 + sizeof(struct ls_tunnel6) > data_end || *(const __u8 *)ip6 >> 4 != 6 ||
		    ip6->nexthdr != IPPROTO_UDP)
			return 0;
		key->from[0] = ls_load64(&ip6->saddr);
		key->from[1] = ls_load64((void *)&ip6->saddr + 8);
		key->at[0] = ls_load64(&ip6->daddr);
		key->at[1] = ls_load64((void *)&ip6->daddr + 8);
		at->overhead = sizeof(struct ls_tunnel6);
		at->class = ls_traffic_class(ip6, bpf_htons(ETH_P_IPV6));
		at->udp = (void *)(ip6 + 1);
	} else {
		return 0;
	}
	at->vxlan = (void *)(at->udp + 1);
	at->eth = (void *)(at->vxlan + 1);
	at->inner = at->eth + 1;
	if (!ls_can_pop(skb, at))
		return 0;
	key->macs = ls_load64(at->eth);
	key->macs_rest = ls_load32((void *)at->eth + 8);
	key->vni_be = at->vxlan->vni_be;
	return 1;
}

/* An address of the key as ls_node has it. */
LS_INLINE void ls_address(__u8 *address, const __u64 *words, __u32 overhead)
{
	__builtin_memcpy(address, words, 16);
	if (overhead == sizeof(struct ls_tunnel4)) {
		*(__be32 *)(address + 8) = bpf_htonl(0xffff);
		*(__be32 *)(address + 12) = words[1];
	}
}

/* What the maps say. Returns 0, or the drop reason negated, which is for the receiver's slot. */
LS_INLINE int ls_learn(struct ls_arrival *arrival, const struct ls_arrival_key *key, __u32 overhead, __u64 now)
{
	__u32 vni = bpf_ntohl(key->vni_be) >> 8;
	struct ls_fdb_key receiver = {}, source = {};
	const __u32 *number, *segment;
	const struct ls_peer *sender;
	const struct ls_node *node;
	struct ls_node_key address;
	const struct ls_fdb *to;

	ls_arrival_keep(arrival, key, now);
	segment = vnis.lookup(&vni);
	if (!segment) {
		LS_TELL(NO_SEGMENT, vni);
		return 0;
	}
	LS_TELL(SEGMENT, *segment);
	ls_address(address.remote, key->from, overhead);
	number = node_by_ip.lookup(&address);
	node = number ? nodes.lookup((__u32 *)number) : 0;
	ls_address(address.remote, key->at, overhead);
	if (!node || ls_load64(node->local) != ls_load64(address.remote) ||
	    ls_load64(node->local + 8) != ls_load64(address.remote + 8)) {
		LS_TELL(NO_NODE, 0);
		return 0;
	}
	LS_TELL(NODE, *number);
	receiver.segment = source.segment = *segment;
	__builtin_memcpy(receiver.mac, &key->macs, ETH_ALEN);
	__builtin_memcpy(source.mac, (void *)&key->macs + ETH_ALEN, ETH_ALEN);
	to = fdb.lookup(&receiver);
	if (!to) {
		LS_TELL(NO_FDB, 0);
		return 0;
	}
	LS_TELL(FDB, to->ifindex);
	arrival->to.slot = to->slot;
	sender = peers.lookup(&source);
	if (sender ? sender->node != *number : !!fdb.lookup(&source)) {
		arrival->epoch = 0; /* never now: looked up again each time */
		return -LS_DROP_SPOOFED_PEER;
	}
	LS_TELL_FOUND(sender, FROM_PEER, *number, FROM_NOBODY);
	if (sender)
		arrival->to.ifindex = to->ifindex;
	return 0;
}

/* Outer headers off, the inner Ethernet header in the place of the outer one, and on into the sandbox. TC_ACT_UNSPEC if
 * the kernel does not do it with such a packet, which then is as it was. The outer UDP header was not checked, so what the
 * device vouches for is one checksum less (__skb_decr_checksum_unnecessary in include/linux/skbuff.h). */
LS_INLINE int ls_pop(struct __sk_buff *skb, const struct ls_arrival_key *key, __u32 overhead, __be16 proto_be,
		     const struct ls_fdb *to, struct ls_sampling *sample)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET;
	struct ethhdr eth __attribute__((aligned(8)));

	if (proto_be != skb->protocol)
		flags |= proto_be == bpf_htons(ETH_P_IP) ? LS_POP_TO_IPV4 : LS_POP_TO_IPV6;
	if (bpf_skb_adjust_room(skb, -(__s32)overhead, BPF_ADJ_ROOM_MAC, flags))
		return TC_ACT_UNSPEC;
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	__builtin_memcpy(&eth, (void *)key + __builtin_offsetof(struct ls_arrival_key, macs), 2 * ETH_ALEN);
	eth.h_proto = proto_be;
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0))
		return TC_ACT_SHOT; /* out of memory */
	ls_delivered_fast(sample, to->slot);
	return bpf_redirect_peer(to->ifindex, 0);
}

/* Has the headers lie where they can be read: a device may leave all but the first few in fragments. Not a byte more: TCP
 * sends its headers alone in the linear part, and to pull payload there costs as much as this whole program. */
LS_INLINE void ls_pull_headers(struct __sk_buff *skb)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (void *)(long)skb->data;
	const __u8 *ip = (void *)(eth + 1);
	__u32 len = LS_HEADERS(ls_tunnel6);

	if ((void *)eth + LS_HEADERS(ls_tunnel4) <= data_end && eth->h_proto == bpf_htons(ETH_P_IP))
		return;
	if (skb->len < len)
		len = skb->len;
	if ((void *)eth + len <= data_end)
		return;
	if ((void *)eth + LS_DIRECT_HEADERS > data_end || ip[eth->h_proto == bpf_htons(ETH_P_IP) ? 9 : 6] == IPPROTO_UDP)
		bpf_skb_pull_data(skb, len);
}

LS_INLINE struct ls_arrival *ls_arrival_place(const struct ls_arrival_key *key)
{
	__u32 index = ls_flow_index(key->macs_rest ^ key->vni_be, (void *)&key->macs);

	return arrivals.lookup(&index);
}

/* Fills the key for a packet without VXLAN; 0 if it is not IP. */
LS_INLINE int ls_parse_direct(const struct __sk_buff *skb, struct ls_arrival_key *key)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (void *)(long)skb->data;
	const struct iphdr *ip = (void *)(eth + 1);
	const struct ipv6hdr *ip6 = (void *)(eth + 1);

	if ((void *)(ip + 1) > data_end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		ls_map_ip4(key->from, ip->saddr);
		ls_map_ip4(key->at, ip->daddr);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6) && (void *)(ip6 + 1) <= data_end) {
		key->from[0] = ls_load64(&ip6->saddr);
		key->from[1] = ls_load64((void *)&ip6->saddr + 8);
		key->at[0] = ls_load64(&ip6->daddr);
		key->at[1] = ls_load64((void *)&ip6->daddr + 8);
	} else {
		return 0;
	}
	key->macs = ls_load64(eth);
	key->macs_rest = ls_load32((void *)eth + 8);
	key->vni_be = LS_NO_VXLAN;
	return 1;
}

/* Whose a packet's source address is on a segment. */
LS_INLINE const struct ls_neighbour *ls_owner(const struct ls_arrival_key *key, __u32 segment, int is_ip4)
{
	struct ls_neigh6_key ip6 = { .segment = segment };
	struct ls_neigh4_key ip4 = { .segment = segment, .ip4 = key->from[1] >> 32 };

	if (is_ip4)
		return neigh4.lookup(&ip4);
	__builtin_memcpy(ip6.ip6, key->from, sizeof(ip6.ip6));
	return neigh6.lookup(&ip6);
}

/* As ls_learn, for a packet without VXLAN that is for `target`. The MAC of the frame tells which host it came from: an
 * endpoint's address alone is forged by anyone on the layer 2 segment. */
LS_INLINE int ls_learn_direct(struct ls_arrival *arrival, const struct ls_arrival_key *key, int is_ip4,
			      const struct ls_direct *target, __u64 now)
{
	struct ls_fdb_key receiver = { .segment = target->segment }, source = { .segment = target->segment };
	const struct ls_neighbour *owner;
	const struct ls_node *node = 0;
	const struct ls_peer *sender;
	const struct ls_fdb *to;
	__u32 number;

	ls_arrival_keep(arrival, key, now);
	__builtin_memcpy(receiver.mac, target->mac, ETH_ALEN);
	to = fdb.lookup(&receiver);
	owner = to ? ls_owner(key, target->segment, is_ip4) : 0;
	if (!owner) {
		LS_TELL(FROM_NOBODY, 0);
		return 0;
	}
	arrival->to.slot = to->slot;
	__builtin_memcpy(source.mac, owner->mac, ETH_ALEN);
	sender = peers.lookup(&source);
	if (sender) {
		number = sender->node;
		node = nodes.lookup(&number);
	}
	if (!node || !(ls_load32(node->mac) | ls_load16(node->mac + 4)) ||
	    !ls_mac_copy_equal(node->mac, (void *)&key->macs + ETH_ALEN)) {
		arrival->epoch = 0; /* never now: looked up again each time */
		return -LS_DROP_SPOOFED_PEER;
	}
	LS_TELL(FROM_PEER, number);
	__builtin_memcpy(arrival->macs, receiver.mac, ETH_ALEN);
	__builtin_memcpy(arrival->macs + ETH_ALEN, source.mac, ETH_ALEN);
	arrival->to.ifindex = to->ifindex;
	return 0;
}

LS_INLINE int ls_count_arrival(const struct __sk_buff *skb, __u32 slot, __u64 packets, int action)
{
	struct ls_counters *counters = ep_counters.lookup(&slot);

	if (counters) {
		counters->in_fast_packets += packets;
		counters->in_fast_bytes += skb->len;
	}
	return action;
}

/* A packet without VXLAN. What is not from a peer for an endpoint is not remembered either: it is the host's own. */
LS_INLINE int ls_take_direct(struct __sk_buff *skb, struct ls_arrival_key *key, __u64 now, struct ls_sampling *sample)
{
	const struct ls_direct *target;
	struct ls_arrival *arrival;
	__u32 index;
	int dropped;

	if (!ls_parse_direct(skb, key))
		return TC_ACT_UNSPEC;
	index = ls_flow_index(key->from[1] >> 32, (void *)&key->at[1] + 2); /* the last four bytes of both */
	arrival = arrivals.lookup(&index);
	if (!arrival)
		return TC_ACT_UNSPEC;
	if (!ls_is_arrival(arrival, key, now)) {
		target = direct.lookup((struct ls_direct_key *)key->at);
		if (!target) {
			LS_TELL(NO_TAKER, 0);
			return TC_ACT_UNSPEC;
		}
		LS_TELL(TAKER, target->segment);
		dropped = ls_learn_direct(arrival, key, skb->protocol == bpf_htons(ETH_P_IP), target, now);
		if (dropped) {
			ls_count_drop(arrival->to.slot, -dropped);
			return TC_ACT_SHOT;
		}
	}
	if (!arrival->to.ifindex || !ls_fits(skb, arrival->to.ifindex, 0))
		return TC_ACT_UNSPEC;
	if (bpf_skb_store_bytes(skb, 0, arrival->macs, sizeof(arrival->macs), 0))
		return TC_ACT_SHOT; /* out of memory */
	ls_delivered_fast(sample, arrival->to.slot);
	return ls_count_arrival(skb, arrival->to.slot, ls_wire_packets(skb), bpf_redirect_peer(arrival->to.ifindex, 0));
}

int ls_uplink_in(struct __sk_buff *skb)
{
	struct ls_sampling *sample = ls_arrived();
	struct ls_arrival_key key;
	struct ls_arrival *arrival;
	__u64 now = ls_flow_epoch();
	__u64 packets = ls_wire_packets(skb);
	struct ls_headers at;
	__be16 proto_be;
	int dropped, action;

	if (!sample || skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_UNSPEC;
	ls_pull_headers(skb);
	if (!ls_parse(skb, &at, &key)) {
		LS_TELL(NO_TUNNEL, 0);
		return ls_take_direct(skb, &key, now, sample);
	}
	proto_be = at.eth->h_proto;
	arrival = ls_arrival_place(&key);
	if (!arrival)
		return TC_ACT_UNSPEC;
	if (!likely(ls_is_arrival(arrival, &key, now))) {
		dropped = ls_learn(arrival, &key, at.overhead, now);
		if (dropped) {
			ls_count_drop(arrival->to.slot, -dropped);
			return TC_ACT_SHOT;
		}
	}
	if (likely(arrival->to.ifindex) && ls_fits(skb, arrival->to.ifindex, at.overhead)) {
		action = ls_pop(skb, &key, at.overhead, proto_be, &arrival->to, sample);
		if (likely(action != TC_ACT_UNSPEC))
			return ls_count_arrival(skb, arrival->to.slot, packets, action);
	}
	ls_left_to_kernel(sample, skb, at.overhead, skb->len - at.overhead);
	if (arrival->to.ifindex)
		return TC_ACT_UNSPEC;
	return ls_take_direct(skb, &key, now, sample); /* perhaps a tunnel of the endpoints' own */
}
