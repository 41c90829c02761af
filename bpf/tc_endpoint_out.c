// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_ep_out: tc ingress of an endpoint's host end, which sees all that the endpoint sends. Drops what is forged or
 * malformed, answers ARP requests and neighbour solicitations for known addresses, sends unicast for an endpoint on the
 * same segment straight into its sandbox or, in VXLAN or direct, to the host that it is on, and leaves everything else to
 * the kernel. Reads epoch, ep_by_if, fdb, peers, nodes, direct, neigh4 and neigh6, writes ep_counters, ep_drops,
 * sampling, latencies and its own flows. Changes no packet but those that it answers or sends to other hosts; touches none of a device that is not in
 * ep_by_if.
 */
#include "lib/check.h"
#include "lib/fits.h"
#include "lib/flow.h"
#include "lib/remote.h"
#include "lib/verdict.h"

/* Where the fast path takes unicast for `mac`; ifindex 0 if it is the kernel's. */
LS_INLINE struct ls_fdb ls_destination(const struct ls_endpoint *ep, __u32 ifindex, const __u8 *mac)
{
	struct ls_fdb_key key = { .segment = ep->segment };
	struct ls_fdb nowhere = {};
	const struct ls_fdb *found;

	if (!(ep->flags & LS_EP_FAST)) {
		LS_TELL(NOT_CONNECTED, ifindex);
		return nowhere;
	}
	__builtin_memcpy(key.mac, mac, ETH_ALEN);
	found = fdb.lookup(&key);
	LS_TELL_FOUND(found && found->ifindex != ifindex, FDB, found->ifindex, NO_FDB);
	return found && found->ifindex != ifindex ? *found : nowhere;
}

/* The endpoint of another host that has `mac`; vni 0 if there is none that the fast path sends to. */
LS_INLINE struct ls_peer ls_remote(const struct ls_endpoint *ep, const __u8 *mac)
{
	struct ls_fdb_key key = { .segment = ep->segment };
	struct ls_peer nobody = {};
	const struct ls_peer *found;

	if (!(ep->flags & LS_EP_FAST) || !(ep->flags & LS_EP_OVERLAY))
		return nobody;
	__builtin_memcpy(key.mac, mac, ETH_ALEN);
	found = peers.lookup(&key);
	LS_TELL_FOUND(found, PEER, found->node, NO_PEER);
	return found ? *found : nobody;
}

LS_INLINE int ls_path(struct __sk_buff *skb, const struct ls_fdb *to, const struct ls_flow *flow)
{
	if (likely(to->ifindex)) {
		if (ls_fits(skb, to->ifindex, 0))
			return LS_PEER;
		LS_TELL(TOO_LONG, to->ifindex);
		return LS_KERNEL;
	}
	return flow && flow->peer.vni ? LS_REMOTE : LS_KERNEL;
}

/* All of it, for packets whose flow is not remembered. */
LS_INLINE int ls_judge(struct __sk_buff *skb, const struct ls_endpoint *ep, __u32 ifindex, __u64 now,
		       struct ls_flow *flow, struct ls_fdb *to)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	struct ls_l3 l3;
	int verdict;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return -LS_DROP_MALFORMED;
	if (!ls_mac_equal(eth->h_source, ep->mac))
		return -LS_DROP_SPOOFED_MAC;
	if (!ls_is_plain(skb, ep)) {
		verdict = ls_check(skb, ep, eth, 1, &l3, to);
		if (verdict != LS_FORWARD)
			return verdict;
	}
	LS_TELL(SENDER, ep->slot);
	*to = ls_destination(ep, ifindex, eth->h_dest);
	if (flow)
		ls_flow_keep(flow, ifindex, now, eth->h_dest, ep, to);
	if (flow && !to->ifindex) {
		flow->peer = ls_remote(ep, eth->h_dest);
		ls_wait_for_direct(flow);
	}
	return ls_path(skb, to, flow);
}

int ls_ep_out(struct __sk_buff *skb)
{
	struct ls_sampling *sample = ls_arrived();
	__u32 ifindex = skb->ifindex;
	__u64 now = ls_flow_epoch();
	struct ls_flow *flow = ls_flow_place(skb, ifindex);
	const struct ls_endpoint *ep;
	struct ls_fdb to = {};
	int verdict;

	if (!sample)
		return TC_ACT_UNSPEC;
	if (likely(flow && ls_flow_is(flow, skb, ifindex, now) && ls_is_plain(skb, &flow->endpoint))) {
		verdict = ls_path(skb, &flow->to, flow);
		if (likely(verdict != LS_REMOTE))
			return ls_exit_out(skb, flow->endpoint.slot, verdict, &flow->to, sample);
	} else {
		ep = ep_by_if.lookup(&ifindex);
		if (!ep) {
			LS_TELL(NO_ENDPOINT, ifindex);
			return TC_ACT_UNSPEC;
		}
		verdict = ls_judge(skb, ep, ifindex, now, flow, &to);
		if (verdict != LS_REMOTE)
			return ls_exit_out(skb, ep->slot, verdict, &to, sample);
	}
	return flow ? ls_exit_remote(skb, flow, sample) : TC_ACT_UNSPEC;
}
