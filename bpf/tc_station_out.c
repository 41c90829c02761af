// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_station_out: tc egress of a macvlan device, in its sandbox. In bridge mode macvlan copies a broadcast to all devices on
 * the parent before the parent sees it, so this is the only place to keep one sandbox from flooding the others. It drops what
 * exceeds the endpoint's limit, and changes nothing. Nowhere else is to be seen all that an endpoint sends, so the round
 * trips of its TCP connections are read here. Its filter's class is the endpoint's slot. Reads limits and writes its part of
 * them, ep_drops, sampling and latencies.
 */
#include "lib/limit.h"
#include "lib/tcp.h"
#include "lib/verdict.h"

int ls_station_out(struct __sk_buff *skb)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	__u32 slot = LS_CLASS_OF(skb);

	ls_leaves(skb, slot);
	if ((void *)(eth + 1) > (void *)(long)skb->data_end || !ls_is_for_all(eth->h_dest) || ls_may_send(slot))
		return TC_ACT_UNSPEC;
	ls_count_drop(slot, LS_DROP_STORM);
	return TC_ACT_SHOT;
}
