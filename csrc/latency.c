/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values of the map latencies, packed and added up. A host has thousands, and Python would take longer for the empty buckets
 * of them than for all the rest.
 */
#include <linux/types.h>
#include <stddef.h>

#include "abi.h"
#include "native.h"

static __u32 used_buckets(const struct ls_latency *value, __u32 *first)
{
	__u32 low = 0, high = LS_LATENCY_BUCKETS;

	while (high > 0 && !value->buckets[high - 1])
		high--;
	while (low < high && !value->buckets[low])
		low++;
	*first = low;
	return high - low;
}

static __u64 packed_size(__u32 used)
{
	return sizeof(struct ls_histogram) + used * sizeof(__u64);
}

__u64 ls_histograms_size(const struct ls_latency *values, __u32 count)
{
	__u64 size = 0;
	__u32 first;

	for (__u32 at = 0; at < count; at++)
		size += packed_size(used_buckets(&values[at], &first));
	return size;
}

void ls_histograms_hold(struct ls_histograms *into, const struct ls_latency_key *keys, const struct ls_latency *values,
			__u32 count, void *room)
{
	char *end = room;

	for (__u32 at = 0; at < count; at++) {
		struct ls_histogram *h = (struct ls_histogram *)end;

		if (keys[at].slot >= into->owners || keys[at].kind >= into->kinds)
			continue;
		h->total_ns = values[at].total_ns;
		h->used = used_buckets(&values[at], &h->first);
		for (__u32 bucket = 0; bucket < h->used; bucket++)
			h->count[bucket] = values[at].buckets[h->first + bucket];
		into->held[(__u64)keys[at].slot * into->kinds + keys[at].kind] = h;
		end += packed_size(h->used);
	}
}

const struct ls_histogram *ls_histogram_of(const struct ls_histograms *of, __u32 owner, __u32 kind)
{
	if (owner >= of->owners || kind >= of->kinds)
		return NULL;
	return of->held[(__u64)owner * of->kinds + kind];
}

__u32 ls_histograms_add(struct ls_latency *sum, const struct ls_histograms *of, __u32 kind, const __u32 *owners,
			__u32 count)
{
	__u32 found = 0;

	for (__u32 at = 0; at < count; at++) {
		const struct ls_histogram *h = ls_histogram_of(of, owners[at], kind);

		if (!h)
			continue;
		found++;
		sum->total_ns += h->total_ns;
		for (__u32 bucket = 0; bucket < h->used; bucket++)
			sum->buckets[h->first + bucket] += h->count[bucket];
	}
	return found;
}
