/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * How long packets take from their arrival until they are handed to a sandbox, one in `every`.
 *
 * A program that packets arrive at begins with ls_arrived, which says when, or that this packet is not timed. The fast path
 * ends with ls_delivered_fast. What the kernel gets is noted by ls_left_to_kernel, and known again at the receiver's host end by
 * ls_delivered_slow: a bridge brings it there before anything else arrives on the CPU. A packet that is queued on its way, for
 * another CPU or as in a VXLAN device, meanwhile loses its note to the next arrival, and is not counted: better none than
 * another's time.
 */
#ifndef LINKSPAN_LATENCY_H
#define LINKSPAN_LATENCY_H

#include "../maps.h"
#include "bucket.h"

/* Whether this packet is one of those that are looked at. */
LS_INLINE int ls_is_sampled(struct ls_sampling *sample)
{
	if (likely(sample->left)) {
		sample->left -= 1;
		return 0;
	}
	if (!sample->every)
		return 0;
	/* At random, or of two flows that take turns only one would be seen. The mean is `every`. */
	sample->left = bpf_get_prandom_u32() % (2 * sample->every - 1);
	return 1;
}

/* A packet has arrived. Never null, but the verifier does not know. */
LS_INLINE struct ls_sampling *ls_arrived(void)
{
	__u32 first = 0;
	struct ls_sampling *sample = sampling.lookup(&first);

	if (!sample)
		return 0;
	sample->begin_ns = 0;
	if (ls_is_sampled(sample)) {
		sample->len = 0;
		sample->begin_ns = bpf_ktime_get_ns();
	}
	return sample;
}

LS_INLINE void ls_add_latency(__u32 slot, __u32 kind, __u64 ns)
{
	struct ls_latency_key key = { .slot = slot, .kind = kind };
	struct ls_latency *latency = latencies.lookup(&key);
	__u32 bucket = 0;

	if (!latency) {
		struct ls_latency *empty = no_latency.lookup(&bucket);

		if (!empty)
			return;
		/* Another CPU may have made it since: then this makes none. */
		latencies.insert(&key, empty);
		latency = latencies.lookup(&key);
		if (!latency)
			return;
	}
	bucket = ls_latency_bucket(ns);
	if (bucket >= LS_LATENCY_BUCKETS)
		return; /* for the verifier */
	lock_xadd(&latency->buckets[bucket], 1);
	lock_xadd(&latency->total_ns, ns);
}

/* The fast path is about to hand the packet to the sandbox of the endpoint with this slot. */
LS_INLINE void ls_delivered_fast(struct ls_sampling *sample, __u32 slot)
{
	if (likely(!sample->begin_ns))
		return;
	ls_add_latency(slot, LS_LATENCY_FAST, bpf_ktime_get_ns() - sample->begin_ns);
	sample->begin_ns = 0;
}

/* The kernel gets the packet, whose inner Ethernet header is at `offset` and which has `len` bytes from there on. */
LS_INLINE void ls_left_to_kernel(struct ls_sampling *sample, struct __sk_buff *skb, __u32 offset, __u32 len)
{
	if (likely(!sample->begin_ns))
		return;
	if (!bpf_skb_load_bytes(skb, offset, sample->macs, sizeof(sample->macs)))
		sample->len = len;
}

/* Whether two pairs of MACs are the same. */
LS_INLINE int ls_are_macs(const __u8 *a, const __u8 *b)
{
	return ls_load64(a) == ls_load64(b) && ls_load32(a + 8) == ls_load32(b + 8);
}

/* The kernel has brought a packet to the host end of the endpoint with this slot. The first copy of one for a group is the
 * one that counts. */
LS_INLINE void ls_delivered_slow(const struct __sk_buff *skb, __u32 slot)
{
	const __u8 *macs = (void *)(long)skb->data;
	__u32 first = 0;
	struct ls_sampling *sample = sampling.lookup(&first);

	if (!sample || likely(!sample->begin_ns) || sample->len != skb->len ||
	    (void *)(macs + sizeof(sample->macs)) > (void *)(long)skb->data_end || !ls_are_macs(macs, sample->macs))
		return;
	ls_add_latency(slot, LS_LATENCY_SLOW, bpf_ktime_get_ns() - sample->begin_ns);
	sample->begin_ns = 0;
}

#endif
