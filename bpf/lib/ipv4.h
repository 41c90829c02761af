/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * IPv4 and ARP of an endpoint: is the sender who it must be, and can an ARP request be answered here.
 */
#ifndef LINKSPAN_IPV4_H
#define LINKSPAN_IPV4_H

#include <uapi/linux/ip.h>
#include "eth.h"

/* RFC 826. <linux/if_arp.h> wants a C library. */
#define LS_ARP_HTYPE_ETHERNET 1
#define LS_ARP_REQUEST 1
#define LS_ARP_REPLY 2

/* ARP for IPv4 over Ethernet. */
struct ls_arp {
	__be16 htype_be;
	__be16 ptype_be;
	__u8 hlen;
	__u8 plen;
	__be16 op_be;
	__u8 sha[ETH_ALEN];
	__u8 spa[4];
	__u8 tha[ETH_ALEN];
	__u8 tpa[4];
};

struct ls_arp_frame {
	struct ethhdr eth;
	struct ls_arp arp;
} __attribute__((packed));

/* 169.254.0.0/16 (RFC 3927). */
LS_INLINE int ls_is_link_local4(__be32 ip4)
{
	return (ip4 & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
}

/* Whether the endpoint may send from the address, as ls_check_owner() says it. */
LS_INLINE int ls_check_own_ip4(const struct ls_endpoint *ep, __be32 ip4, int reason)
{
	struct ls_neigh4_key key = { .segment = ep->segment, .ip4 = ip4 };

	if (ip4 == ep->ip4)
		return LS_FORWARD;
	if (!ls_is_link_local4(ip4))
		return -reason;
	return ls_check_owner(ep, neigh4.lookup(&key), reason);
}

/* The total length is not compared with the packet's: it is 0 in a GSO packet over 64 KiB, and the receiver
 * checks it. */
LS_INLINE int ls_check_ip4(struct __sk_buff *skb, const struct ls_endpoint *ep, __u32 offset)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return -LS_DROP_MALFORMED;
	if (ip.version != 4 || ip.ihl < 5 || offset + ip.ihl * 4 > skb->len)
		return -LS_DROP_MALFORMED;
	if (!ip.saddr)
		return LS_KERNEL; /* DHCP and IGMP before there is an address */
	return ls_check_own_ip4(ep, ip.saddr, LS_DROP_SPOOFED_IP4);
}

/* Returns 0, or a drop reason negated. */
LS_INLINE int ls_load_arp(struct __sk_buff *skb, __u32 offset, struct ls_arp *arp)
{
	if (bpf_skb_load_bytes(skb, offset, arp, sizeof(*arp)))
		return -LS_DROP_MALFORMED;
	if (arp->htype_be != bpf_htons(LS_ARP_HTYPE_ETHERNET) || arp->ptype_be != bpf_htons(ETH_P_IP) ||
	    arp->hlen != ETH_ALEN || arp->plen != sizeof(arp->spa))
		return -LS_DROP_MALFORMED;
	return 0;
}

/* Turns an untagged request into the answer that the owner of tpa would give to the one that asked, whose MAC is
 * `asker`. Returns 0 if there is no such neighbour to answer for. */
LS_INLINE int ls_answer_arp(struct __sk_buff *skb, __u32 segment, const __u8 *asker, const struct ls_arp *request)
{
	struct ls_neigh4_key key = { .segment = segment };
	const struct ls_neighbour *owner;
	struct ls_arp_frame reply = {};

	__builtin_memcpy(&key.ip4, request->tpa, sizeof(key.ip4));
	owner = neigh4.lookup(&key);
	if (!owner || (owner->flags & LS_NEIGH_SILENT) || ls_mac_equal(owner->mac, asker)) {
		LS_TELL(NOT_ANSWERED, 0);
		return 0;
	}
	LS_TELL(ANSWERED, 0);
	__builtin_memcpy(reply.eth.h_dest, asker, ETH_ALEN);
	__builtin_memcpy(reply.eth.h_source, owner->mac, ETH_ALEN);
	reply.eth.h_proto = bpf_htons(ETH_P_ARP);
	reply.arp = *request;
	reply.arp.op_be = bpf_htons(LS_ARP_REPLY);
	__builtin_memcpy(reply.arp.sha, owner->mac, ETH_ALEN);
	__builtin_memcpy(reply.arp.spa, request->tpa, sizeof(reply.arp.spa));
	__builtin_memcpy(reply.arp.tha, request->sha, ETH_ALEN);
	__builtin_memcpy(reply.arp.tpa, request->spa, sizeof(reply.arp.tpa));
	/* Not by direct writes: a program with one of those copies every cloned packet (all of TCP's) first. */
	return !bpf_skb_store_bytes(skb, 0, &reply, sizeof(reply), BPF_F_RECOMPUTE_CSUM);
}

/* Whether a broadcast packet may be answered for another. One from 0.0.0.0 asks whether an address is free (RFC 5227),
 * so all must see it. A unicast request asks whether a neighbour is still there (RFC 1122, 2.3.2.1), so only the
 * neighbour answers it. */
LS_INLINE int ls_is_arp_question(const struct ls_arp *arp)
{
	__be32 spa, tpa;

	__builtin_memcpy(&spa, arp->spa, sizeof(spa));
	__builtin_memcpy(&tpa, arp->tpa, sizeof(tpa));
	return arp->op_be == bpf_htons(LS_ARP_REQUEST) && spa && spa != tpa;
}

LS_INLINE int ls_check_arp(struct __sk_buff *skb, const struct ls_endpoint *ep, const struct ls_l3 *l3,
			   int may_answer, struct ls_fdb *to)
{
	struct ls_arp arp;
	__be32 spa;
	int verdict = ls_load_arp(skb, l3->offset, &arp);

	if (verdict < 0)
		return verdict;
	__builtin_memcpy(&spa, arp.spa, sizeof(spa));
	if (!ls_mac_copy_equal(arp.sha, ep->mac))
		return -LS_DROP_SPOOFED_ARP;
	if (!spa)
		return LS_KERNEL;
	verdict = ls_check_own_ip4(ep, spa, LS_DROP_SPOOFED_ARP);
	if (verdict != LS_FORWARD || !may_answer || !ls_is_arp_question(&arp))
		return verdict;
	if (!ls_answer_arp(skb, ep->segment, ep->mac, &arp))
		return LS_KERNEL;
	to->ifindex = skb->ifindex;
	to->slot = ep->slot;
	return LS_PEER;
}

#endif
