// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_parent_in: tc ingress of a macvlan parent, which sees what comes from the wire, what ls_parent_out sends here, and
 * what macvlan takes from one bridged station to another. Drops what the latter forge, counts the unicast packets that
 * macvlan delivers to stations, and takes the notes of ls_parent_out off. Reads epoch, parents, stations, neigh4 and
 * neigh6, writes ep_counters, ep_drops and its own flows. Changes no packet but copies that ls_parent_out has made.
 *
 * A packet from the wire with the MAC of a station is one that a switch has sent back (which is how VEPA works) or
 * another's. It passes like any other, unless it is from one bridged station to another, which the wire never carries:
 * then it cannot be told from a packet that macvlan has taken here, and must be as honest.
 */
#include "lib/check.h"
#include "lib/flow.h"
#include "lib/parent.h"
#include "lib/verdict.h"

/* What the maps say: `to.slot` is the receiver's, and `endpoint` is the sender if macvlan takes its packets there. */
LS_INLINE int ls_learn(const struct __sk_buff *skb, struct ls_flow *flow, __u32 ifindex, __u64 now)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	const struct ls_endpoint *from, *to;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return 0;
	ls_flow_begin(flow, eth, ifindex, now);
	to = ls_station(ifindex, eth->h_dest);
	if (!to)
		return 1;
	flow->to.slot = to->slot;
	if (!(to->flags & LS_EP_BRIDGED))
		return 1;
	from = ls_station(ifindex, eth->h_source);
	if (from && (from->flags & LS_EP_BRIDGED))
		flow->endpoint = *from;
	return 1;
}

LS_INLINE int ls_between_stations(struct __sk_buff *skb, const struct ls_flow *flow)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 slot = flow->endpoint.slot;
	struct ls_fdb to;
	struct ls_l3 l3;
	int verdict;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	if (!ls_is_plain(skb, &flow->endpoint)) {
		verdict = ls_check(skb, &flow->endpoint, eth, 0, &l3, &to);
		if (unlikely(verdict < 0)) {
			ls_count_drop(slot, -verdict);
			return TC_ACT_SHOT;
		}
	}
	LS_TELL(SENDER, slot);
	LS_TELL(STATION, flow->to.slot);
	ls_count_out(skb, slot, 0);
	ls_count_in(skb, flow->to.slot, 0);
	return TC_ACT_UNSPEC;
}

/* A copy for the host gets the host's MAC, so that macvlan doesn't take it to other stations, and stays what it was to
 * the host, a broadcast or multicast. The host's own packet is for macvlan, and to the host another's. */
LS_INLINE int ls_arrive_group(struct __sk_buff *skb, __u32 ifindex, __u16 note)
{
	const struct ls_parent *parent;
	__u8 mac[ETH_ALEN];

	ls_arrive(skb);
	if (note == LS_NOTE_ALL) {
		bpf_skb_change_type(skb, PACKET_OTHERHOST);
		return TC_ACT_UNSPEC;
	}
	parent = parents.lookup(&ifindex);
	if (!parent)
		return TC_ACT_SHOT;
	__builtin_memcpy(mac, parent->mac, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, mac, ETH_ALEN, 0))
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}

int ls_parent_in(struct __sk_buff *skb)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 ifindex = skb->ifindex;
	__u16 note = LS_NOTE_IN(skb);
	__u64 now = ls_flow_epoch();
	struct ls_flow *flow;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	if (ls_is_group(eth->h_dest))
		return note == LS_NOTE_HOST || note == LS_NOTE_ALL ? ls_arrive_group(skb, ifindex, note) : TC_ACT_UNSPEC;
	flow = ls_parent_place(skb, ifindex);
	if (!flow || (!ls_flow_is(flow, skb, ifindex, now) && !ls_learn(skb, flow, ifindex, now)))
		return TC_ACT_UNSPEC;
	if (flow->endpoint.slot != LS_NO_SLOT)
		return ls_between_stations(skb, flow);
	if (note == LS_NOTE_SHORT)
		ls_arrive(skb);
	else if (flow->to.slot != LS_NO_SLOT)
		ls_count_in(skb, flow->to.slot, 0);
	return TC_ACT_UNSPEC;
}
