/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Ethernet and VLAN headers: comparing MACs by words, finding the network header behind tags.
 */
#ifndef LINKSPAN_ETH_H
#define LINKSPAN_ETH_H

#include <uapi/linux/if_ether.h>
#include "verdict.h"

/* VLAN tags that are looked through, the one that the kernel keeps beside the packet included (802.1ad has two). */
#define LS_VLAN_DEPTH 2

/* A packet's network header. */
struct ls_l3 {
	__u32 offset; /* from the start of the Ethernet header */
	__be16 proto_be;
	__u16 tags;
};

struct ls_vlan_tag {
	__be16 tci_be;
	__be16 proto_be; /* of what follows the tag */
};

/* For packets and map values; 32-bit words. */
LS_INLINE int ls_mac_equal(const void *a, const void *b)
{
	return ((ls_load32(a) ^ ls_load32(b)) | (ls_load16(a + 4) ^ ls_load16(b + 4))) == 0;
}

/* For copies on the stack, where the verifier insists on alignment; 16-bit words. */
LS_INLINE int ls_mac_copy_equal(const void *a, const void *b)
{
	return ((ls_load16(a) ^ ls_load16(b)) | (ls_load16(a + 2) ^ ls_load16(b + 2)) |
		(ls_load16(a + 4) ^ ls_load16(b + 4))) == 0;
}

LS_INLINE int ls_is_group(const __u8 *mac)
{
	return mac[0] & 1;
}

/* For packets. */
LS_INLINE int ls_is_broadcast(const __u8 *mac)
{
	return (ls_load32(mac) & ls_load32(mac + 2)) == 0xffffffff;
}

LS_INLINE int ls_is_tag(__be16 proto_be)
{
	return proto_be == bpf_htons(ETH_P_8021Q) || proto_be == bpf_htons(ETH_P_8021AD);
}

/* Whether the packet has a VLAN tag, in it or, as the kernel keeps the outer one, beside it. */
LS_INLINE int ls_is_tagged(const struct __sk_buff *skb, const struct ethhdr *eth)
{
	return skb->vlan_present || ls_is_tag(eth->h_proto);
}

/* Whether an endpoint may send from a link-local address that is not in its record; `owner` is what neigh4 or neigh6
 * has of it. Returns LS_FORWARD; LS_KERNEL where nobody is known to have it, so that it may be one that an engine has
 * given the endpoint; or the drop reason negated. */
LS_INLINE int ls_check_owner(const struct ls_endpoint *ep, const struct ls_neighbour *owner, int reason)
{
	if (owner)
		return ls_mac_equal(owner->mac, ep->mac) ? LS_FORWARD : -reason;
	return ep->flags & LS_EP_ENGINE ? LS_KERNEL : -reason;
}

/* Finds the network header of a packet whose Ethernet header says proto_be. Returns 0, or a drop reason negated. */
LS_INLINE int ls_skip_tags(struct __sk_buff *skb, __be16 proto_be, struct ls_l3 *l3)
{
	struct ls_vlan_tag tag;

	l3->offset = ETH_HLEN;
	l3->tags = skb->vlan_present ? 1 : 0;
#pragma unroll
	for (int i = 0; i <= LS_VLAN_DEPTH; i++) {
		if (!ls_is_tag(proto_be))
			break;
		if (++l3->tags > LS_VLAN_DEPTH)
			return -LS_DROP_TOO_DEEP;
		if (bpf_skb_load_bytes(skb, l3->offset, &tag, sizeof(tag)))
			return -LS_DROP_MALFORMED;
		l3->offset += sizeof(tag);
		proto_be = tag.proto_be;
	}
	l3->proto_be = proto_be;
	return 0;
}

#endif
