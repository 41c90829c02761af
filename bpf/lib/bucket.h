/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The bucket of ls_latency that a duration belongs to.
 */
#ifndef LINKSPAN_BUCKET_H
#define LINKSPAN_BUCKET_H

/* Within the first bucket, and within the last. */
#define LS_LATENCY_MIN_NS 14ULL
#define LS_LATENCY_MAX_NS 13000000000ULL

/* 1 if a < b, for numbers below 2^63. No jump: the verifier would walk all that follows once for each outcome. */
LS_INLINE __u32 ls_is_less(__u64 a, __u64 b)
{
	return (a - b) >> 63;
}

/* The position of the highest bit that is set; `x` is not 0. By counting the bits of 2^(position+1) - 1, likewise without a
 * jump (Warren, Hacker's Delight, 5-1 and 5-3). */
LS_INLINE __u32 ls_log2(__u64 x)
{
	x |= x >> 1;
	x |= x >> 2;
	x |= x >> 4;
	x |= x >> 8;
	x |= x >> 16;
	x |= x >> 32;
	x -= (x >> 1) & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + ((x >> 2) & 0x3333333333333333ULL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (x * 0x0101010101010101ULL >> 56) - 1;
}

/*
 * Bounds are 2^(k/4) seconds and belong to the bucket below. In units of 2^-38 s, rounded up, a duration is at most 2^n
 * exactly if one less than it has no bit from n on. The bounds between are 2^(1/4), 2^(1/2) and 2^(3/4) of 2^n, here of
 * 2^62; no whole number of nanoseconds lies between one of them and where it is in these units (tests/bpf/test_latency.py
 * tries all).
 */
LS_INLINE __u32 ls_latency_bucket(__u64 ns)
{
	__u64 units, mantissa;
	__u32 octave;

	if (ns < LS_LATENCY_MIN_NS)
		ns = LS_LATENCY_MIN_NS;
	if (ns > LS_LATENCY_MAX_NS)
		ns = LS_LATENCY_MAX_NS;
	units = ((ns << 29) + 1953124) / 1953125 - 1; /* 2^38 / 10^9 = 2^29 / 5^9 */
	octave = ls_log2(units);
	mantissa = units << (62 - octave);
	return LS_LATENCY_SECOND + 4 * (octave + 1 - 38) - ls_is_less(mantissa, 0x4c1bf828c6dc54b7ULL) -
	       ls_is_less(mantissa, 0x5a827999fcef3242ULL) - ls_is_less(mantissa, 0x6ba27e656b4eb57aULL);
}

#endif
