/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One histogram as /metrics has it, in the text format or as the protobuf message io.prometheus.client.Histogram. A
 * host has thousands, each with some twenty buckets. Callers see to it that `out` has room: LS_HISTOGRAM_BYTES, and for
 * text the series and what is around it once a line.
 */
#include <stdio.h>
#include <string.h>

#include "native.h"

static char *put_bytes(char *out, const void *bytes, size_t size)
{
	memcpy(out, bytes, size);
	return out + size;
}

static char *put_varint(char *out, __u64 value)
{
	for (; value > 0x7f; value >>= 7)
		*out++ = (char)(value | 0x80);
	*out++ = (char)value;
	return out;
}

static char *put_zigzag(char *out, __s64 value)
{
	return put_varint(out, ((__u64)value << 1) ^ (__u64)(value >> 63));
}

static char *put_double(char *out, double value)
{
	return put_bytes(out, &value, sizeof(value));
}

static char *put_number(char *out, __u64 value)
{
	char digits[20], *at = digits + sizeof(digits);

	do {
		*--at = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	return put_bytes(out, at, (size_t)(digits + sizeof(digits) - at));
}

/* How many samples were at most the next of `octaves`' bounds, going on from bucket *at. */
static __u64 at_most(const struct ls_histogram *h, const struct ls_octaves *octaves, __u32 bound, __u32 *at)
{
	__s64 last = ((__s64)octaves->first + (__s64)octaves->step * bound) * octaves->per_octave;
	__u64 count = 0;

	while (*at < h->used && (bound == octaves->bounds || h->bucket[*at] <= last))
		count += h->count[(*at)++];
	return count;
}

__u32 ls_histogram_text(char *out, const struct ls_histogram *h, const struct ls_octaves *octaves, const char *around,
			const char *series, __u32 series_size)
{
	char *end = out;
	__u64 count = 0;
	__u32 at = 0, line;

	/* A line for each bound, one for +Inf, then the count and the sum; the last two texts are around the sum. */
	for (line = 0; line < octaves->bounds + 3; line++) {
		end = put_bytes(end, around, strlen(around));
		around += strlen(around) + 1;
		end = put_bytes(end, series, series_size);
		end = put_bytes(end, around, strlen(around));
		around += strlen(around) + 1;
		if (line <= octaves->bounds)
			count += at_most(h, octaves, line, &at);
		if (line <= octaves->bounds + 1)
			end = put_number(end, count);
		else
			end += sprintf(end, "%.9g", h->total_seconds);
		*end++ = '\n';
	}
	return (__u32)(end - out);
}

static char *put_bucket(char *out, __u64 count, double bound)
{
	char body[32], *end = body;

	*end++ = 0x08; /* cumulative_count */
	end = put_varint(end, count);
	*end++ = 0x11; /* upper_bound */
	end = put_double(end, bound);
	*out++ = 0x1a; /* Histogram.bucket */
	out = put_varint(out, (__u64)(end - body));
	return put_bytes(out, body, (size_t)(end - body));
}

/* Runs of buckets next to each other, each with its distance from the end of the run before. */
static char *put_spans(char *out, const struct ls_histogram *h)
{
	char body[32], *end;
	__s64 following = 0;
	__u32 at, length;

	for (at = 0; at < h->used; at += length) {
		for (length = 1; at + length < h->used && h->bucket[at + length] == h->bucket[at] + (int)length;)
			length++;
		end = body;
		*end++ = 0x08; /* offset */
		end = put_zigzag(end, h->bucket[at] - following);
		*end++ = 0x10; /* length */
		end = put_varint(end, length);
		*out++ = 0x62; /* positive_span */
		out = put_varint(out, (__u64)(end - body));
		out = put_bytes(out, body, (size_t)(end - body));
		following = (__s64)h->bucket[at] + length;
	}
	return out;
}

__u32 ls_histogram_protobuf(char *out, const struct ls_histogram *h, const struct ls_octaves *octaves,
			    const double *bounds, int schema, double zero_threshold)
{
	char *end = out;
	__u64 count = 0, before = 0;
	__u32 at;

	for (at = 0; at < h->used; at++)
		count += h->count[at];
	*end++ = 0x08; /* sample_count */
	end = put_varint(end, count);
	*end++ = 0x11; /* sample_sum */
	end = put_double(end, h->total_seconds);
	count = at = 0;
	for (__u32 bound = 0; bound <= octaves->bounds; bound++) {
		count += at_most(h, octaves, bound, &at);
		end = put_bucket(end, count, bounds[bound]);
	}
	*end++ = 0x28; /* schema */
	end = put_zigzag(end, schema);
	*end++ = 0x31; /* zero_threshold */
	end = put_double(end, zero_threshold);
	*end++ = 0x38; /* zero_count */
	end = put_varint(end, 0);
	end = put_spans(end, h);
	for (at = 0; at < h->used; at++) {
		*end++ = 0x68; /* positive_delta */
		end = put_zigzag(end, (__s64)(h->count[at] - before));
		before = h->count[at];
	}
	return (__u32)(end - out);
}
