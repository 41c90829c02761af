/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Verdicts, and the one exit that counts them. A function that judges a packet returns a verdict >= 0, or a drop
 * reason negated: every packet of an endpoint ends in exactly one of out_fast, out_slow or a drop.
 */
#ifndef LINKSPAN_VERDICT_H
#define LINKSPAN_VERDICT_H

#include <uapi/linux/if_packet.h>
#include <uapi/linux/pkt_cls.h>
#include "../maps.h"
#include "latency.h"
#include "tcp.h"
#include "trace.h"

enum ls_verdict {
	LS_KERNEL = 0,  /* slow path: the kernel gets the packet as it is */
	LS_FORWARD = 1, /* checked: the fast path takes it if it knows the destination */
	LS_PEER = 2,    /* fast path: straight into the sandbox of an endpoint */
	LS_REMOTE = 3,  /* fast path: to the host of an endpoint of another host */
};

/* What stands on the wire: a GSO packet is as many packets as it has segments. The kernel leaves gso_segs at 0
 * for GSO packets of untrusted origin (a packet socket's virtio header); they count as one. */
LS_INLINE __u64 ls_wire_packets(const struct __sk_buff *skb)
{
	__u32 segments = skb->gso_segs;

	return segments ? segments : 1;
}

LS_INLINE void ls_count_drop(__u32 slot, __u32 reason)
{
	struct ls_drop_key key = { .slot = slot, .reason = reason };
	__u64 *packets = ep_drops.lookup(&key);
	__u64 one = 1;

	LS_TELL(DROP, reason);
	if (packets)
		*packets += 1;
	else
		/* Another CPU may make the element first; that is no loss, because a program's update of a
		 * per-CPU element touches its own CPU's copy alone. */
		ep_drops.update(&key, &one);
}

/* What an endpoint has sent. Nothing is counted for a slot that does not exist. */
LS_INLINE void ls_count_out(const struct __sk_buff *skb, __u32 slot, int is_fast)
{
	struct ls_counters *counters = ep_counters.lookup(&slot);

	if (!counters)
		return;
	if (is_fast) {
		counters->out_fast_packets += ls_wire_packets(skb);
		counters->out_fast_bytes += skb->len;
	} else {
		counters->out_slow_packets += ls_wire_packets(skb);
		counters->out_slow_bytes += skb->len;
	}
}

/* What is delivered to an endpoint. */
LS_INLINE void ls_count_in(const struct __sk_buff *skb, __u32 slot, int is_fast)
{
	struct ls_counters *counters = ep_counters.lookup(&slot);

	if (!counters)
		return;
	if (is_fast) {
		counters->in_fast_packets += ls_wire_packets(skb);
		counters->in_fast_bytes += skb->len;
	} else {
		counters->in_slow_packets += ls_wire_packets(skb);
		counters->in_slow_bytes += skb->len;
	}
}

/* The exit of the program at the endpoint's outward side. `to` matters for LS_PEER alone. */
LS_INLINE int ls_exit_out(struct __sk_buff *skb, __u32 slot, int verdict, const struct ls_fdb *to,
			  struct ls_sampling *sample)
{
	struct ls_counters *counters;
	__u64 packets, bytes;

	if (unlikely(verdict < 0)) {
		ls_count_drop(slot, -verdict);
		return TC_ACT_SHOT;
	}
	ls_sent(sample, skb, slot);
	packets = ls_wire_packets(skb);
	bytes = skb->len;
	counters = ep_counters.lookup(&slot);
	if (unlikely(verdict != LS_PEER)) {
		if (counters) {
			counters->out_slow_packets += packets;
			counters->out_slow_bytes += bytes;
		}
		ls_left_to_kernel(sample, skb, 0, bytes);
		return TC_ACT_UNSPEC; /* not OK: programs and filters behind this one run too */
	}
	if (counters) {
		counters->out_fast_packets += packets;
		counters->out_fast_bytes += bytes;
	}
	slot = to->slot;
	counters = ep_counters.lookup(&slot);
	if (counters) {
		counters->in_fast_packets += packets;
		counters->in_fast_bytes += bytes;
	}
	/* The host end's own MAC is not the packet's, so eth_type_trans() took it for another host's, and
	 * ip_rcv() in the sandbox would drop it. */
	bpf_skb_change_type(skb, PACKET_HOST);
	ls_delivered_fast(sample, slot);
	return bpf_redirect_peer(to->ifindex, 0);
}

/* The exit of the program at the endpoint's inward side: what the slow path delivers. */
LS_INLINE int ls_exit_in(const struct __sk_buff *skb, __u32 slot)
{
	ls_count_in(skb, slot, 0);
	ls_delivered_slow(skb, slot);
	return TC_ACT_UNSPEC;
}

#endif
