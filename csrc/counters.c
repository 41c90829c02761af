/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters of all CPUs added up: each of thousands has a value for every CPU that the host may have.
 */
#include <linux/types.h>

#include "abi.h"
#include "native.h"

#define WORDS (sizeof(struct ls_counters) / sizeof(__u64))

void ls_counters_total(const struct ls_counters *values, __u32 count, __u32 cpus, struct ls_counters *totals)
{
	const __u64 *from = (const __u64 *)values;
	__u64 *into = (__u64 *)totals;

	for (__u32 at = 0; at < count; at++, into += WORDS) {
		for (__u32 word = 0; word < WORDS; word++)
			into[word] = 0;
		for (__u32 cpu = 0; cpu < cpus; cpu++, from += WORDS)
			for (__u32 word = 0; word < WORDS; word++)
				into[word] += from[word];
	}
}
