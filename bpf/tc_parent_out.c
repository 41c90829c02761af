// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_parent_out: tc egress of a macvlan parent, which sees what its stations (macvlan endpoints) send to the outside, to
 * the host and to groups, and all that the host sends. Drops what a station forges. Where the parent's record allows
 * it, lets the host and the stations reach each other by way of the parent's ingress: unicast is redirected there,
 * group packets are copied, and the host's questions for the addresses of stations are answered. Counts what stations
 * send, and what the host sends to them, and reads the round trips of those stations' TCP connections that ls_station_out does
 * not see. Reads epoch, parents, stations, neigh4 and neigh6, writes ep_counters, ep_drops, sampling, latencies and its own
 * flows. Changes no packet but the questions that it answers, and touches none that is neither a station's
 * nor the host's.
 */
#include "lib/check.h"
#include "lib/flow.h"
#include "lib/parent.h"
#include "lib/verdict.h"

/* What the maps say of the packet's sender and destination; 0 if the device is no parent. In the flow, `to.ifindex` is
 * the parent where the short cut leads to the destination, `endpoint.flags` has LS_EP_FAST for a sender that may take
 * it, and `endpoint.slot` is LS_NO_SLOT for the host and for strangers. */
LS_INLINE int ls_learn(const struct __sk_buff *skb, struct ls_flow *flow, __u32 ifindex, __u64 now)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	const struct ls_endpoint *station;
	const struct ls_parent *parent;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return 0;
	parent = parents.lookup(&ifindex);
	if (!parent)
		return 0;
	ls_flow_begin(flow, eth, ifindex, now);
	station = ls_station(ifindex, eth->h_source);
	if (station && (station->flags & LS_EP_SWITCHED))
		return 1; /* ls_switch_out has judged and counted it */
	if (station) {
		flow->endpoint = *station;
		if (!(parent->flags & LS_PARENT_HOST))
			flow->endpoint.flags &= ~LS_EP_FAST;
		if ((flow->endpoint.flags & LS_EP_FAST) && ls_mac_equal(eth->h_dest, parent->mac))
			flow->to.ifindex = ifindex;
	} else if ((parent->flags & LS_PARENT_HOST) && ls_mac_equal(eth->h_source, parent->mac)) {
		flow->endpoint.flags = LS_EP_FAST;
		flow->endpoint.segment = parent->segment;
		station = ls_station(ifindex, eth->h_dest);
		if (station && (station->flags & LS_EP_FAST)) {
			flow->to.ifindex = ifindex;
			flow->to.slot = station->slot;
		}
	}
	return 1;
}

/* Sends the packet in at the device that it was to leave by. */
LS_INLINE int ls_turn(struct __sk_buff *skb, __u32 ifindex)
{
	skb->tc_index = LS_NOTE_SHORT;
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

/* Has a copy of the packet come in, with a note for ls_parent_in, while the packet itself goes on as it is. */
LS_INLINE int ls_copy(struct __sk_buff *skb, __u32 ifindex, __u16 note)
{
	__u16 others = skb->tc_index;

	skb->tc_index = note;
	bpf_clone_redirect(skb, ifindex, BPF_F_INGRESS);
	skb->tc_index = others;
	return TC_ACT_UNSPEC;
}

LS_INLINE int ls_from_station(struct __sk_buff *skb, const struct ls_flow *flow, __u32 ifindex)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 slot = flow->endpoint.slot;
	struct ls_l3 l3 = {};
	struct ls_fdb to;
	int is_copied, verdict;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	is_copied = ls_is_group(eth->h_dest) && (flow->endpoint.flags & LS_EP_FAST) && !ls_is_for_wire(eth->h_dest);
	if (!ls_is_plain(skb, &flow->endpoint)) {
		verdict = ls_check(skb, &flow->endpoint, eth, 0, &l3, &to);
		if (unlikely(verdict < 0)) {
			ls_count_drop(slot, -verdict);
			return TC_ACT_SHOT;
		}
	}
	LS_TELL(SENDER, slot);
	if (!(flow->endpoint.flags & LS_EP_LIMITED))
		ls_leaves(skb, slot);
	if (flow->to.ifindex && !l3.tags) {
		LS_TELL(HOST, ifindex);
		ls_count_out(skb, slot, 1);
		return ls_turn(skb, ifindex);
	}
	LS_TELL(WIRE, ifindex);
	ls_count_out(skb, slot, 0);
	if (is_copied && !l3.tags)
		return ls_copy(skb, ifindex, LS_NOTE_HOST);
	return TC_ACT_UNSPEC;
}

/* Whether the host's packet was a question for a station's address, and is the answer now. */
LS_INLINE int ls_answer_host(struct __sk_buff *skb, const struct ls_flow *flow, const struct ethhdr *eth)
{
	struct ls_nd_message nd __attribute__((aligned(8)));
	struct ipv6hdr ip6 __attribute__((aligned(8)));
	struct ls_arp arp;

	if (eth->h_proto == bpf_htons(ETH_P_ARP))
		return ls_is_broadcast(eth->h_dest) && !ls_load_arp(skb, ETH_HLEN, &arp) && ls_is_arp_question(&arp) &&
		       ls_answer_arp(skb, flow->endpoint.segment, flow->endpoint.mac, &arp);
	if (eth->h_proto != bpf_htons(ETH_P_IPV6) || bpf_skb_load_bytes(skb, ETH_HLEN, &ip6, sizeof(ip6)) ||
	    ip6.nexthdr != IPPROTO_ICMPV6 || bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(ip6), &nd, sizeof(nd)))
		return 0;
	return nd.opt.len == 1 && !ls_ip6_is_zero(&ip6.saddr) && ls_is_nd_question(&ip6, &nd.icmp6, nd.opt.type) &&
	       ls_answer_nd(skb, flow->endpoint.segment, flow->endpoint.mac, &ip6, &nd.target);
}

/* The host's own stack never sees the copy of its group packet: it would take it for another host that has its
 * address (RFC 4862, 5.4.3), and programs for one that says the same. */
LS_INLINE int ls_from_host(struct __sk_buff *skb, const struct ls_flow *flow, __u32 ifindex)
{
	const struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end || ls_is_tagged(skb, eth))
		return TC_ACT_UNSPEC;
	if (flow->to.ifindex) {
		ls_count_in(skb, flow->to.slot, 1);
		return ls_turn(skb, ifindex);
	}
	if (!ls_is_group(eth->h_dest) || ls_is_for_wire(eth->h_dest))
		return TC_ACT_UNSPEC;
	if (ls_answer_host(skb, flow, eth))
		return ls_turn(skb, ifindex);
	return ls_copy(skb, ifindex, LS_NOTE_ALL);
}

int ls_parent_out(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	__u64 now = ls_flow_epoch();
	struct ls_flow *flow = ls_parent_place(skb, ifindex);

	if (!flow || (!ls_flow_is(flow, skb, ifindex, now) && !ls_learn(skb, flow, ifindex, now)))
		return TC_ACT_UNSPEC;
	if (flow->endpoint.slot != LS_NO_SLOT)
		return ls_from_station(skb, flow, ifindex);
	if (flow->endpoint.flags & LS_EP_FAST)
		return ls_from_host(skb, flow, ifindex);
	return TC_ACT_UNSPEC;
}
