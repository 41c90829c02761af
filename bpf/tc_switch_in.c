// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_switch_in: tc ingress of a switched parent, which sees what comes from the wire and what ls_switch_out and
 * ls_parent_out send here. Takes unicast for a station straight into its sandbox, gives stations their copies of group
 * packets, and takes the notes of the other programs off; all else is the host's. Reads epoch, fdb and stations, writes
 * ep_counters, sampling, latencies and its own flows.
 *
 * Of its stations' own group packets that a switch sends back, a VEPA has its other stations get copies (bridged ones have
 * theirs already, private ones get none), as in drivers/net/macvlan.c, macvlan_multicast_rx.
 */
#include "lib/flow.h"
#include "lib/switch.h"
#include "lib/verdict.h"

LS_INLINE int ls_group_in(struct __sk_buff *skb, const struct ethhdr *eth, __u32 ifindex, __u16 note)
{
	const struct ls_endpoint *sender;
	__u32 bridge;

	if (note == LS_NOTE_HOST) {
		ls_arrive(skb);
		return TC_ACT_UNSPEC;
	}
	bridge = ls_flooder(ifindex);
	if (note == LS_NOTE_ALL) {
		ls_arrive(skb);
		return bridge ? bpf_redirect(bridge, 0) : TC_ACT_SHOT;
	}
	/* Tagged ones are for the host's own sub-interfaces. */
	if (!bridge || ls_is_tagged(skb, eth) || ls_is_for_wire(eth->h_dest))
		return TC_ACT_UNSPEC;
	sender = ls_station(ifindex, eth->h_source);
	if (!sender || (sender->flags & LS_EP_VEPA))
		bpf_clone_redirect(skb, bridge, 0);
	return TC_ACT_UNSPEC;
}

LS_INLINE int ls_learn(const struct __sk_buff *skb, struct ls_flow *flow, __u32 ifindex, __u64 now)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	const struct ls_fdb *to;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return 0;
	ls_flow_begin(flow, eth, ifindex, now);
	to = ls_switch_port(LS_PARENT_SEGMENT | ifindex, eth->h_dest);
	if (to)
		flow->to = *to;
	return 1;
}

int ls_switch_in(struct __sk_buff *skb)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	struct ls_sampling *sample = ls_arrived();
	__u32 ifindex = skb->ifindex;
	__u16 note = LS_NOTE_IN(skb);
	__u64 now = ls_flow_epoch();
	struct ls_flow *flow;

	if (!sample || (void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	if (ls_is_group(eth->h_dest))
		return ls_group_in(skb, eth, ifindex, note);
	flow = ls_parent_place(skb, ifindex);
	if (!flow || (!ls_flow_is(flow, skb, ifindex, now) && !ls_learn(skb, flow, ifindex, now)))
		return TC_ACT_UNSPEC;
	if (note == LS_NOTE_SHORT)
		ls_arrive(skb);
	if (flow->to.slot == LS_NO_SLOT)
		return TC_ACT_UNSPEC;
	if (note != LS_NOTE_SHORT) /* else the sender's program has counted it */
		ls_count_in(skb, flow->to.slot, 1);
	bpf_skb_change_type(skb, PACKET_HOST);
	ls_delivered_fast(sample, flow->to.slot);
	return bpf_redirect_peer(flow->to.ifindex, 0);
}
