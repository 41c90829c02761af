// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ls_switch_xdp: XDP of a switched parent, in the place of ls_switch_in for unicast that the wire brings for a station: sends
 * it to the station before the kernel makes an skb of it. All else passes. Reads fdb, writes ep_counters,
 * sampling and latencies.
 */
#include <uapi/linux/bpf.h>
#include "lib/latency.h"
#include "lib/switch.h"

int ls_switch_xdp(struct xdp_md *ctx)
{
	const struct ethhdr *eth = (void *)(long)ctx->data;
	struct ls_sampling *sample = ls_arrived();
	struct ls_counters *counters;
	const struct ls_fdb *to;
	__u32 slot;

	if (!sample || (void *)(eth + 1) > (void *)(long)ctx->data_end || ls_is_group(eth->h_dest))
		return XDP_PASS;
	to = ls_switch_port(LS_PARENT_SEGMENT | ctx->ingress_ifindex, eth->h_dest);
	if (!to) {
		LS_TELL(NO_FDB, 0);
		return XDP_PASS;
	}
	LS_TELL(FDB, to->ifindex);
	slot = to->slot;
	counters = ep_counters.lookup(&slot);
	if (counters) {
		counters->in_fast_packets += 1;
		counters->in_fast_bytes += ctx->data_end - ctx->data;
	}
	ls_delivered_fast(sample, slot);
	return bpf_redirect(to->ifindex, 0);
}
