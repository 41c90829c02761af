/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters and histograms as /metrics has them: lines of the text format, or messages io.prometheus.client.Metric. A
 * host has thousands, each histogram with some twenty buckets.
 */
#include <linux/types.h>
#include <stdio.h>
#include <string.h>

#include "abi.h"
#include "native.h"

/* One series: its labels in two pieces, the owner's and the kind's, and what was timed or counted. */
struct series {
	const char *owner;
	const char *kind;
	__u32 owner_size;
	__u32 kind_size;
	const struct ls_histogram *h;
	__u64 value;
};

static char *put_bytes(char *out, const void *bytes, size_t size)
{
	memcpy(out, bytes, size);
	return out + size;
}

/* Moves *text on to the one behind its NUL. */
static char *put_text(char *out, const char **text)
{
	char *end = stpcpy(out, *text);

	*text += end - out + 1;
	return end;
}

static char *put_labels(char *out, const struct series *s)
{
	return put_bytes(put_bytes(out, s->owner, s->owner_size), s->kind, s->kind_size);
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

static char *put_sized(char *out, const char *bytes, size_t size)
{
	return put_bytes(put_varint(out, size), bytes, size);
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

static double seconds(const struct ls_histogram *h)
{
	return (double)h->total_ns / 1e9;
}

/* The number of a bucket in a native histogram, where bucket 0 ends at one second. */
static int native_bucket(const struct ls_histogram *h, __u32 at)
{
	return (int)(h->first + at) - LS_LATENCY_SECOND;
}

/* How many samples were at most a bound, the one after the last being infinity, going on from bucket *at. */
static __u64 at_most(const struct ls_histogram *h, const struct ls_family *family, __u32 bound, __u32 *at)
{
	int last = (family->first + family->step * (int)bound) * (1 << family->schema);
	__u64 count = 0;

	while (*at < h->used && (bound == family->bounds || native_bucket(h, *at) <= last))
		count += h->count[(*at)++];
	return count;
}

static char *put_text_histogram(char *out, const struct ls_family *family, const struct series *s)
{
	const char *around = family->around;
	__u64 count = 0;
	__u32 at = 0, line;

	/* A line for each bound, one for +Inf, then the count and the sum. */
	for (line = 0; line < family->bounds + 3; line++) {
		out = put_labels(put_text(out, &around), s);
		out = put_text(out, &around);
		if (line <= family->bounds)
			count += at_most(s->h, family, line, &at);
		if (line <= family->bounds + 1)
			out = put_number(out, count);
		else
			out += sprintf(out, "%.9g", seconds(s->h));
		*out++ = '\n';
	}
	return out;
}

static char *put_bucket(char *out, __u64 count, double bound)
{
	char body[32], *end = body;

	*end++ = 0x08; /* cumulative_count */
	end = put_varint(end, count);
	*end++ = 0x11; /* upper_bound */
	end = put_double(end, bound);
	*out++ = 0x1a; /* Histogram.bucket */
	return put_sized(out, body, (size_t)(end - body));
}

/* Runs of buckets in use, each with its distance from the end of the run before. */
static char *put_spans(char *out, const struct ls_histogram *h)
{
	char body[32], *end;
	int following = 0;
	__u32 at, length;

	for (at = 0; at < h->used; at += length) {
		while (!h->count[at])
			at++;
		for (length = 1; at + length < h->used && h->count[at + length];)
			length++;
		end = body;
		*end++ = 0x08; /* offset */
		end = put_zigzag(end, native_bucket(h, at) - following);
		*end++ = 0x10; /* length */
		end = put_varint(end, length);
		*out++ = 0x62; /* positive_span */
		out = put_sized(out, body, (size_t)(end - body));
		following = native_bucket(h, at) + (int)length;
	}
	return out;
}

static char *put_histogram(char *out, const struct ls_family *family, const struct ls_histogram *h)
{
	__u64 count = 0, before = 0;
	__u32 at, bound;

	for (at = 0; at < h->used; at++)
		count += h->count[at];
	*out++ = 0x08; /* sample_count */
	out = put_varint(out, count);
	*out++ = 0x11; /* sample_sum */
	out = put_double(out, seconds(h));
	count = at = 0;
	for (bound = 0; bound <= family->bounds; bound++) {
		count += at_most(h, family, bound, &at);
		out = put_bucket(out, count, family->bound[bound]);
	}
	*out++ = 0x28; /* schema */
	out = put_zigzag(out, family->schema);
	*out++ = 0x31; /* zero_threshold */
	out = put_double(out, family->zero_threshold);
	*out++ = 0x38; /* zero_count */
	out = put_varint(out, 0);
	out = put_spans(out, h);
	for (at = 0; at < h->used; at++) {
		if (!h->count[at])
			continue;
		*out++ = 0x68; /* positive_delta */
		out = put_zigzag(out, (__s64)(h->count[at] - before));
		before = h->count[at];
	}
	return out;
}

/* The Metric of a series, `body` being its one field of type `field`. */
static char *put_metric(char *out, const struct series *s, char field, const char *body, size_t size)
{
	char head[16], *end;

	head[0] = field;
	end = put_varint(head + 1, size);
	*out++ = 0x22; /* MetricFamily.metric */
	out = put_varint(out, s->owner_size + s->kind_size + (size_t)(end - head) + size);
	out = put_bytes(put_labels(out, s), head, (size_t)(end - head));
	return put_bytes(out, body, size);
}

static char *put_histogram_metric(char *out, const struct ls_family *family, const struct series *s)
{
	char body[LS_HISTOGRAM_BYTES];

	return put_metric(out, s, 0x3a, body, (size_t)(put_histogram(body, family, s->h) - body)); /* histogram */
}

static char *put_text_counter(char *out, const struct ls_family *family, const struct series *s)
{
	const char *around = family->around;

	out = put_labels(put_text(out, &around), s);
	out = put_number(put_text(out, &around), s->value);
	*out++ = '\n';
	return out;
}

static char *put_counter_metric(char *out, const struct ls_family *family, const struct series *s)
{
	char body[9] = { 0x09 }; /* value */

	put_double(body + 1, (double)s->value);
	return put_metric(out, s, 0x1a, body, sizeof(body)); /* counter */
}

/* The labels of number `at`, and their size. */
static const char *labels_at(const struct ls_labelled *of, __u32 at, __u32 *size)
{
	__u32 begin = at ? of->ends[at - 1] : 0;

	*size = of->ends[at] - begin;
	return of->labels + begin;
}

/* Puts series of histograms, or of values where there are none. */
static __u32 put_all(char *out, __u32 size, const struct ls_family *family, const struct ls_histograms *of,
		     const __u64 *values, const struct ls_labelled *owners, const struct ls_labelled *kinds, __u32 *at,
		     char *(*put)(char *, const struct ls_family *, const struct series *))
{
	char *end = out;

	for (; *at < owners->count * kinds->count; (*at)++) {
		__u32 owner = *at / kinds->count, kind = *at % kinds->count;
		struct series s;
		__u64 most;

		s.h = of ? ls_histogram_of(of, owners->numbers[owner], kinds->numbers[kind]) : NULL;
		s.value = values ? values[*at] : 0;
		if (of ? !s.h : family->is_sparse && !s.value)
			continue;
		s.owner = labels_at(owners, owner, &s.owner_size);
		s.kind = labels_at(kinds, kind, &s.kind_size);
		most = (family->bounds + 3ULL) * (s.owner_size + s.kind_size) + family->around_size + LS_HISTOGRAM_BYTES;
		if (most > size - (__u64)(end - out))
			break;
		end = put(end, family, &s);
	}
	return (__u32)(end - out);
}

__u32 ls_histograms_text(char *out, __u32 size, const struct ls_family *family, const struct ls_histograms *of,
			 const struct ls_labelled *owners, const struct ls_labelled *kinds, __u32 *at)
{
	return put_all(out, size, family, of, NULL, owners, kinds, at, put_text_histogram);
}

__u32 ls_histograms_protobuf(char *out, __u32 size, const struct ls_family *family, const struct ls_histograms *of,
			     const struct ls_labelled *owners, const struct ls_labelled *kinds, __u32 *at)
{
	return put_all(out, size, family, of, NULL, owners, kinds, at, put_histogram_metric);
}

__u32 ls_counters_text(char *out, __u32 size, const struct ls_family *family, const __u64 *values,
		       const struct ls_labelled *owners, const struct ls_labelled *kinds, __u32 *at)
{
	return put_all(out, size, family, NULL, values, owners, kinds, at, put_text_counter);
}

__u32 ls_counters_protobuf(char *out, __u32 size, const struct ls_family *family, const __u64 *values,
			   const struct ls_labelled *owners, const struct ls_labelled *kinds, __u32 *at)
{
	return put_all(out, size, family, NULL, values, owners, kinds, at, put_counter_metric);
}
