/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which buckets of histograms are in use: most are not, and Python would take longer to skip them than for all the rest.
 */
#include <linux/types.h>

#include "abi.h"
#include "native.h"

void ls_latency_used(const struct ls_latency *values, __u32 count, __u8 *first, __u8 *end)
{
	for (__u32 at = 0; at < count; at++) {
		const __u64 *buckets = values[at].buckets;
		__u32 low = 0, high = LS_LATENCY_BUCKETS;

		while (high > 0 && !buckets[high - 1])
			high--;
		while (low < high && !buckets[low])
			low++;
		first[at] = low;
		end[at] = high;
	}
}
