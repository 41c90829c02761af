// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_switch_to: tc egress of a switched station's host end, where copies of group packets come by. Counts them, and drops
 * those of the station's own packets, which the flooding bridge takes for another's. Reads ep_by_if, writes ep_counters,
 * sampling and latencies.
 */
#include "lib/eth.h"
#include "lib/verdict.h"

int ls_switch_to(struct __sk_buff *skb)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 ifindex = skb->ifindex;
	const struct ls_endpoint *ep = ep_by_if.lookup(&ifindex);

	if (!ep || (void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	if (ls_mac_equal(eth->h_source, ep->mac))
		return TC_ACT_SHOT;
	return ls_exit_in(skb, ep->slot);
}
