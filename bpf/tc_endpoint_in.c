// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_ep_in: tc egress of an endpoint's host end, which sees all that the slow path delivers to the endpoint, and
 * nothing of the fast path. Counts, and passes every packet as it is. Reads ep_by_if, writes ep_counters, sampling and
 * latencies.
 */
#include "lib/verdict.h"

int ls_ep_in(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	const struct ls_endpoint *ep = ep_by_if.lookup(&ifindex);

	if (!ep)
		return TC_ACT_UNSPEC;
	return ls_exit_in(skb, ep->slot);
}
