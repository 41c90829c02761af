/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * IPv6 of an endpoint: is the sender who it must be, and what stands behind the extension headers. Neighbour
 * discovery is looked at in nd.h.
 */
#ifndef LINKSPAN_IPV6_H
#define LINKSPAN_IPV6_H

#include <uapi/linux/icmpv6.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ipv6.h>
#include "eth.h"
#include "nd.h"

/* Extension headers that are looked through; RFC 8200, 4.1 recommends no chain of more than seven. */
#define LS_IP6_EXT_DEPTH 8

/* Extension headers (RFC 8200, 4; IANA's registry) that the UAPI headers don't name. */
#define LS_IPPROTO_HIP 139
#define LS_IPPROTO_SHIM6 140

/* Parts of frag_off. */
#define LS_IP6_FRAG_OFFSET 0xfff8
#define LS_IP6_FRAG_MORE 0x0001

struct ls_ip6_ext {
	__u8 next_header;
	__u8 len; /* in 8 bytes beyond the first 8; of AH: in 4 bytes beyond the first 8 */
	__be16 frag_off_be;
	__be32 frag_id_be;
};

LS_INLINE int ls_is_ip6_ext(__u8 proto)
{
	const __u64 low = 1ULL << IPPROTO_HOPOPTS | 1ULL << IPPROTO_ROUTING | 1ULL << IPPROTO_FRAGMENT |
			  1ULL << IPPROTO_AH | 1ULL << IPPROTO_DSTOPTS;

	if (proto < 64)
		return (low >> proto) & 1;
	return proto == IPPROTO_MH || proto == LS_IPPROTO_HIP || proto == LS_IPPROTO_SHIM6;
}

/* Walks to the upper-layer header. Returns 0, or a drop reason negated. upper->proto is IPPROTO_NONE where none
 * can be seen: in fragments but the first. A first fragment must hold the whole chain (RFC 7112). */
LS_INLINE int ls_skip_ip6_ext(struct __sk_buff *skb, struct ls_upper *upper)
{
	struct ls_ip6_ext ext;
	__u32 len;

	/* Not as a loop: Linux 6.1's verifier refuses its layout ("back-edge from insn"). */
#pragma unroll
	for (int i = 0; i <= LS_IP6_EXT_DEPTH; i++) {
		if (!ls_is_ip6_ext(upper->proto))
			return 0;
		if (i == LS_IP6_EXT_DEPTH)
			break;
		if (bpf_skb_load_bytes(skb, upper->offset, &ext, sizeof(ext)))
			return -LS_DROP_MALFORMED;
		len = 8 + ext.len * 8;
		if (upper->proto == IPPROTO_AH)
			len = 8 + ext.len * 4;
		if (upper->proto == IPPROTO_FRAGMENT) {
			len = 8;
			if (ext.frag_off_be & bpf_htons(LS_IP6_FRAG_OFFSET)) {
				upper->proto = IPPROTO_NONE;
				return 0;
			}
			upper->is_fragment |= (ext.frag_off_be & bpf_htons(LS_IP6_FRAG_MORE)) != 0;
		}
		upper->offset += len;
		if (upper->offset > skb->len)
			return -LS_DROP_MALFORMED;
		upper->proto = ext.next_header;
	}
	return -LS_DROP_TOO_DEEP;
}

LS_INLINE int ls_check_ip6(struct __sk_buff *skb, const struct ls_endpoint *ep, const struct ls_l3 *l3,
			   int may_answer, struct ls_fdb *to)
{
	struct ls_upper upper = {};
	struct ipv6hdr ip6 __attribute__((aligned(8)));
	int source, verdict;

	if (bpf_skb_load_bytes(skb, l3->offset, &ip6, sizeof(ip6)) || ip6.version != 6)
		return -LS_DROP_MALFORMED;
	upper.proto = ip6.nexthdr;
	upper.offset = l3->offset + sizeof(ip6);
	verdict = ls_skip_ip6_ext(skb, &upper);
	if (verdict < 0)
		return verdict;
	/* From :: before there is an address: multicast listener reports, and who looks for duplicates. */
	source = ls_ip6_is_zero(&ip6.saddr) ? LS_KERNEL : ls_check_own_ip6(ep, &ip6.saddr, LS_DROP_SPOOFED_IP6);
	LS_HIDE(source);
	if (upper.proto == IPPROTO_ICMPV6) {
		if (bpf_skb_load_bytes(skb, upper.offset, &upper.icmp6, sizeof(upper.icmp6)))
			return -LS_DROP_MALFORMED;
		if (ls_is_nd(upper.icmp6.type)) {
			if (source < 0)
				return -LS_DROP_SPOOFED_ND;
			return ls_check_nd(skb, ep, l3, &ip6, &upper, source, may_answer, to);
		}
	}
	return source;
}

#endif
