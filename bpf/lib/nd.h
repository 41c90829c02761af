/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Neighbour discovery (RFC 4861) of an endpoint: does it speak for itself alone, and can a solicitation be
 * answered here.
 */
#ifndef LINKSPAN_ND_H
#define LINKSPAN_ND_H

#include <uapi/linux/icmpv6.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ipv6.h>
#include "eth.h"

/* Options that are looked through: a router advertisement with a dozen prefixes has fewer. */
#define LS_ND_OPT_DEPTH 16

enum ls_nd_type {
	LS_ND_ROUTER_SOLICIT = 133,
	LS_ND_ROUTER_ADVERT = 134,
	LS_ND_SOLICIT = 135,
	LS_ND_ADVERT = 136,
};

enum ls_nd_opt_type {
	LS_ND_OPT_SOURCE_MAC = 1, /* SLLA */
	LS_ND_OPT_TARGET_MAC = 2, /* TLLA */
};

#define LS_ND_HOP_LIMIT 255 /* shows that no router has forwarded the message */

/* Flags of an advertisement, in the first byte behind the checksum. */
#define LS_ND_ADVERT_ROUTER 0x80
#define LS_ND_ADVERT_SOLICITED 0x40
#define LS_ND_ADVERT_OVERRIDE 0x20

struct ls_icmp6 {
	__u8 type;
	__u8 code;
	__be16 checksum_be;
};

/* The header behind IPv6 and its extension headers. */
struct ls_upper {
	__u32 offset; /* from the start of the Ethernet header */
	__u8 proto;
	__u8 is_fragment; /* the first of several: the message goes on elsewhere */
	struct ls_icmp6 icmp6;
};

struct ls_nd_opt {
	__u8 type;
	__u8 len; /* in 8 bytes */
	__u8 mac[ETH_ALEN];
};

/* Neighbour solicitation or advertisement with its one option: the same length, so one turns into the other. */
struct ls_nd_message {
	struct ls_icmp6 icmp6;
	__u8 flags;
	__u8 reserved[3];
	struct in6_addr target;
	struct ls_nd_opt opt;
};

struct ls_nd_frame {
	struct ethhdr eth;
	struct ipv6hdr ip6;
	struct ls_nd_message nd;
} __attribute__((packed));

/* RFC 8200, 8.1. */
struct ls_ip6_pseudo {
	struct in6_addr saddr;
	struct in6_addr daddr;
	__be32 length_be;
	__u8 zero[3];
	__u8 next_header;
};

LS_INLINE int ls_ip6_equal(const void *a, const void *b)
{
	return ((ls_load64(a) ^ ls_load64(b)) | (ls_load64(a + 8) ^ ls_load64(b + 8))) == 0;
}

LS_INLINE int ls_ip6_is_zero(const void *ip6)
{
	return (ls_load64(ip6) | ls_load64(ip6 + 8)) == 0;
}

/* Never true of ::, which stands for "none" in the endpoint. */
LS_INLINE int ls_is_own_ip6(const struct ls_endpoint *ep, const void *ip6)
{
	return !ls_ip6_is_zero(ip6) && (ls_ip6_equal(ip6, ep->ip6) || ls_ip6_equal(ip6, ep->ip6_ll));
}

/* fe80::/10 (RFC 4291, 2.5.6). */
LS_INLINE int ls_is_link_local6(const void *ip6)
{
	return (ls_load16(ip6) & bpf_htons(0xffc0)) == bpf_htons(0xfe80);
}

/* Whether the endpoint may send from the address, as ls_check_owner() says it. */
LS_INLINE int ls_check_own_ip6(const struct ls_endpoint *ep, const struct in6_addr *ip6, int reason)
{
	struct ls_neigh6_key key = { .segment = ep->segment };

	if (ls_is_own_ip6(ep, ip6))
		return LS_FORWARD;
	if (!ls_is_link_local6(ip6))
		return -reason;
	__builtin_memcpy(key.ip6, ip6, sizeof(key.ip6));
	return ls_check_owner(ep, neigh6.lookup(&key), reason);
}

/* Redirects (137) are left out: their target option is another's by right, and their IPv6 source is checked. */
LS_INLINE int ls_is_nd(__u8 icmp6_type)
{
	return icmp6_type >= LS_ND_ROUTER_SOLICIT && icmp6_type <= LS_ND_ADVERT;
}

/* Turns the solicitation into the advertisement that the owner of the target would send to the one that asked, whose
 * MAC is `asker`. Returns 0 if there is no such neighbour to answer for. */
LS_INLINE int ls_answer_nd(struct __sk_buff *skb, __u32 segment, const __u8 *asker, const struct ipv6hdr *request,
			   const struct in6_addr *target)
{
	struct ls_neigh6_key key = { .segment = segment };
	const struct ls_neighbour *owner;
	struct ls_ip6_pseudo pseudo = {};
	struct ls_nd_frame reply = {};
	__s64 sum;

	__builtin_memcpy(key.ip6, target, sizeof(key.ip6));
	owner = neigh6.lookup(&key);
	if (!owner || (owner->flags & LS_NEIGH_SILENT) || ls_mac_equal(owner->mac, asker)) {
		LS_TELL(NOT_ANSWERED, 0);
		return 0;
	}
	LS_TELL(ANSWERED, 0);
	__builtin_memcpy(reply.eth.h_dest, asker, ETH_ALEN);
	__builtin_memcpy(reply.eth.h_source, owner->mac, ETH_ALEN);
	reply.eth.h_proto = bpf_htons(ETH_P_IPV6);
	reply.ip6.version = 6;
	reply.ip6.payload_len = bpf_htons(sizeof(reply.nd));
	reply.ip6.nexthdr = IPPROTO_ICMPV6;
	reply.ip6.hop_limit = LS_ND_HOP_LIMIT;
	reply.ip6.saddr = *target;
	reply.ip6.daddr = request->saddr;
	reply.nd.icmp6.type = LS_ND_ADVERT;
	reply.nd.flags = LS_ND_ADVERT_SOLICITED | LS_ND_ADVERT_OVERRIDE;
	if (owner->flags & LS_NEIGH_ROUTER)
		reply.nd.flags |= LS_ND_ADVERT_ROUTER;
	reply.nd.target = *target;
	reply.nd.opt.type = LS_ND_OPT_TARGET_MAC;
	reply.nd.opt.len = 1;
	__builtin_memcpy(reply.nd.opt.mac, owner->mac, ETH_ALEN);

	pseudo.saddr = *target;
	pseudo.daddr = request->saddr;
	pseudo.length_be = bpf_htonl(sizeof(reply.nd));
	pseudo.next_header = IPPROTO_ICMPV6;
	sum = bpf_csum_diff(0, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&reply.nd, sizeof(reply.nd), sum);
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff);
	sum = (sum & 0xffff) + (sum >> 16);
	reply.nd.icmp6.checksum_be = ~sum;

	return !bpf_skb_store_bytes(skb, 0, &reply, sizeof(reply), BPF_F_RECOMPUTE_CSUM);
}

/* Walks the options between *offset and end: each link-layer address must be the endpoint's own. Returns the number
 * of options, or a drop reason negated; *last_type is the type of the last one. */
LS_INLINE int ls_check_nd_options(struct __sk_buff *skb, const struct ls_endpoint *ep, __u32 offset, __u32 end,
				  __u8 *last_type)
{
	struct ls_nd_opt opt;
	int count;

#pragma clang loop unroll(disable)
	for (count = 0; count <= LS_ND_OPT_DEPTH; count++) {
		if (offset == end)
			return count;
		if (count == LS_ND_OPT_DEPTH)
			break;
		if (bpf_skb_load_bytes(skb, offset, &opt, sizeof(opt)) || !opt.len)
			return -LS_DROP_MALFORMED;
		offset += opt.len * 8;
		if (offset > end)
			return -LS_DROP_MALFORMED;
		if ((opt.type == LS_ND_OPT_SOURCE_MAC || opt.type == LS_ND_OPT_TARGET_MAC) &&
		    !ls_mac_copy_equal(opt.mac, ep->mac))
			return -LS_DROP_SPOOFED_ND;
		*last_type = opt.type;
	}
	return -LS_DROP_TOO_DEEP;
}

/* Whether a multicast packet may be answered for another: a solicitation in the usual form, with one option of type
 * `option`, and not from ::. As with ARP, one from :: looks for duplicates (RFC 4862, 5.4) and a unicast one probes a
 * neighbour; both are for the neighbours themselves. */
LS_INLINE int ls_is_nd_question(const struct ipv6hdr *ip6, const struct ls_icmp6 *icmp6, __u8 option)
{
	return icmp6->type == LS_ND_SOLICIT && icmp6->code == 0 && ip6->nexthdr == IPPROTO_ICMPV6 &&
	       ip6->hop_limit == LS_ND_HOP_LIMIT && ip6->payload_len == bpf_htons(sizeof(struct ls_nd_message)) &&
	       option == LS_ND_OPT_SOURCE_MAC && ip6->daddr.in6_u.u6_addr8[0] == 0xff;
}

/* `source` is what ls_check_own_ip6() says of the sender's address, LS_KERNEL of the unspecified one. */
LS_INLINE int ls_check_nd(struct __sk_buff *skb, const struct ls_endpoint *ep, const struct ls_l3 *l3,
			  const struct ipv6hdr *ip6, const struct ls_upper *upper, int source, int may_answer,
			  struct ls_fdb *to)
{
	__u32 end = l3->offset + sizeof(*ip6) + bpf_ntohs(ip6->payload_len);
	__u32 options = upper->offset + 8; /* of a router solicitation */
	struct in6_addr target __attribute__((aligned(8))) = {};
	int count, owner;
	__u8 last_type = 0;

	/* Receivers ignore fragmented messages (RFC 6980); their options can't be seen here. */
	if (upper->is_fragment || end > skb->len)
		return -LS_DROP_MALFORMED;
	if (upper->icmp6.type == LS_ND_ROUTER_ADVERT)
		options += 8;
	if (upper->icmp6.type == LS_ND_SOLICIT || upper->icmp6.type == LS_ND_ADVERT) {
		if (bpf_skb_load_bytes(skb, options, &target, sizeof(target)))
			return -LS_DROP_MALFORMED;
		options += sizeof(target);
	}
	if (options > end)
		return -LS_DROP_MALFORMED;
	if (upper->icmp6.type == LS_ND_ADVERT) {
		owner = ls_check_own_ip6(ep, &target, LS_DROP_SPOOFED_ND);
		if (owner < 0)
			return owner;
		if (owner == LS_KERNEL)
			source = LS_KERNEL;
	}
	count = ls_check_nd_options(skb, ep, options, end, &last_type);
	if (count < 0)
		return count;
	if (source == LS_KERNEL)
		return LS_KERNEL;
	if (!may_answer || !ls_is_nd_question(ip6, &upper->icmp6, last_type) || ls_is_own_ip6(ep, &target))
		return LS_FORWARD;
	if (!ls_answer_nd(skb, ep->segment, ep->mac, ip6, &target))
		return LS_KERNEL;
	to->ifindex = skb->ifindex;
	to->slot = ep->slot;
	return LS_PEER;
}

#endif
