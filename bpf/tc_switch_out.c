// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_switch_out: tc ingress of a switched station's host end, which sees all that the station sends. Drops what is forged
 * or malformed, and broadcasts past the station's limit. Sends unicast for the host in at the parent, unicast for another
 * bridged station straight into its sandbox, and everything else out by the parent; group packets go to all of these.
 * Nothing is left for the kernel. Reads epoch, ep_by_if, parents, fdb, neigh4 and neigh6, writes ep_counters, ep_drops,
 * limits, sampling, latencies and its own flows. Changes no packet; touches none of a device that is not in ep_by_if.
 */
#include "lib/check.h"
#include "lib/flow.h"
#include "lib/limit.h"
#include "lib/switch.h"
#include "lib/verdict.h"

/* Instead of a slot, in the flow's `to`, whose ifindex is then the parent's. */
#define LS_TO_WIRE LS_NO_SLOT
#define LS_TO_HOST (LS_NO_SLOT - 1)

LS_INLINE int ls_forward(struct __sk_buff *skb, __u32 slot, const struct ls_fdb *to, int is_tagged,
			 struct ls_sampling *sample)
{
	if (to->slot != LS_TO_WIRE && to->slot != LS_TO_HOST)
		return ls_exit_out(skb, slot, LS_PEER, to, sample);
	ls_sent(sample, skb, slot);
	ls_count_out(skb, slot, 1);
	if (to->slot == LS_TO_HOST && !is_tagged) {
		LS_TELL(HOST, to->ifindex);
		skb->tc_index = LS_NOTE_SHORT;
		return bpf_redirect(to->ifindex, BPF_F_INGRESS);
	}
	LS_TELL(WIRE, to->ifindex);
	skb->tc_index = 0;
	return bpf_redirect(to->ifindex, 0);
}

LS_INLINE struct ls_fdb ls_destination(const struct ls_endpoint *ep, const struct ls_parent *parent, __u32 parent_index,
				       __u32 ifindex, const __u8 *mac)
{
	struct ls_fdb to = { .ifindex = parent_index, .slot = LS_TO_WIRE };
	const struct ls_fdb *found;

	if (ls_mac_equal(mac, parent->mac)) {
		if ((ep->flags & LS_EP_FAST) && (parent->flags & LS_PARENT_HOST))
			to.slot = LS_TO_HOST;
	} else if (ep->flags & LS_EP_BRIDGED) {
		found = ls_switch_port(ep->segment, mac);
		if (found && found->ifindex != ifindex) {
			LS_TELL(FDB, found->ifindex);
			to = *found;
		}
	}
	return to;
}

LS_INLINE int ls_flood(struct __sk_buff *skb, const struct ls_endpoint *ep, const struct ls_parent *parent,
		       __u32 parent_index, int is_tagged)
{
	int is_bridged = ep->flags & LS_EP_BRIDGED;
	int is_hosts = (ep->flags & LS_EP_FAST) && (parent->flags & LS_PARENT_HOST) && !is_tagged;
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 bridge;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	if (ls_is_for_all(eth->h_dest) && !ls_may_send(ep->slot)) {
		ls_count_drop(ep->slot, LS_DROP_STORM);
		return TC_ACT_SHOT;
	}
	if (ls_is_for_wire(eth->h_dest))
		is_bridged = is_hosts = 0;
	ls_count_out(skb, ep->slot, 1);
	skb->tc_index = 0;
	bpf_clone_redirect(skb, parent_index, 0);
	bridge = is_bridged ? ls_flooder(parent_index) : 0;
	if (bridge)
		bpf_clone_redirect(skb, bridge, 0);
	if (!is_hosts)
		return TC_ACT_SHOT;
	skb->tc_index = LS_NOTE_HOST;
	return bpf_redirect(parent_index, BPF_F_INGRESS);
}

/* Returns a verdict, or a drop reason negated. */
LS_INLINE int ls_police(struct __sk_buff *skb, const struct ls_endpoint *ep, struct ls_l3 *l3)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	struct ls_fdb nobody;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return -LS_DROP_MALFORMED;
	if (!ls_mac_equal(eth->h_source, ep->mac))
		return -LS_DROP_SPOOFED_MAC;
	return ls_is_plain(skb, ep) ? LS_FORWARD : ls_check(skb, ep, eth, 0, l3, &nobody);
}

/* All of it, for packets whose flow is not remembered. */
LS_INLINE int ls_judge(struct __sk_buff *skb, const struct ls_endpoint *ep, __u32 ifindex, __u64 now,
		       struct ls_flow *flow, struct ls_sampling *sample)
{
	__u32 parent_index = ep->segment & ~LS_PARENT_SEGMENT;
	const struct ls_parent *parent = parents.lookup(&parent_index);
	const struct ethhdr *eth;
	struct ls_l3 l3 = {};
	struct ls_fdb to;
	int verdict;

	if (!parent)
		return TC_ACT_SHOT; /* gone, and the way out with it */
	verdict = ls_police(skb, ep, &l3);
	if (verdict < 0) {
		ls_count_drop(ep->slot, -verdict);
		return TC_ACT_SHOT;
	}
	LS_TELL(SENDER, ep->slot);
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	if (ls_is_group(eth->h_dest))
		return ls_flood(skb, ep, parent, parent_index, l3.tags);
	to = ls_destination(ep, parent, parent_index, ifindex, eth->h_dest);
	if (flow)
		ls_flow_keep(flow, ifindex, now, eth->h_dest, ep, &to);
	return ls_forward(skb, ep->slot, &to, l3.tags, sample);
}

int ls_switch_out(struct __sk_buff *skb)
{
	struct ls_sampling *sample = ls_arrived();
	__u32 ifindex = skb->ifindex;
	__u64 now = ls_flow_epoch();
	struct ls_flow *flow = ls_flow_place(skb, ifindex);
	const struct ls_endpoint *ep;

	if (!sample)
		return TC_ACT_UNSPEC;
	if (likely(flow && ls_flow_is(flow, skb, ifindex, now) && ls_is_plain(skb, &flow->endpoint)))
		return ls_forward(skb, flow->endpoint.slot, &flow->to, 0, sample);
	ep = ep_by_if.lookup(&ifindex);
	if (!ep) {
		LS_TELL(NO_ENDPOINT, ifindex);
		return TC_ACT_UNSPEC;
	}
	return ls_judge(skb, ep, ifindex, now, flow, sample);
}
