/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Is a packet of an endpoint what the endpoint may send? A short line for the usual, a long one for all.
 */
#ifndef LINKSPAN_CHECK_H
#define LINKSPAN_CHECK_H

#include "eth.h"
#include "ipv4.h"
#include "ipv6.h"
#include "l4.h"

/* The short line: true if the packet is surely an untagged IPv4 or IPv6 packet with nothing to object to. It reads
 * few words and calls nothing; what it is not sure of, ls_check() looks at in full. */
LS_INLINE int ls_is_plain(const struct __sk_buff *skb, const struct ls_endpoint *ep)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) + sizeof(struct iphdr) > data_end || skb->vlan_present)
		return 0;
	if (likely(eth->h_proto == bpf_htons(ETH_P_IP))) {
		const struct iphdr *ip = (void *)(eth + 1);

		return *(const __u8 *)ip == LS_IP4_NO_OPTIONS && ip->saddr == ep->ip4 && ip->saddr;
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip6 = (void *)(eth + 1);

		if ((void *)(ip6 + 1) > data_end)
			return 0;
		return (*(const __u8 *)ip6 >> 4) == 6 &&
		       (ip6->nexthdr == IPPROTO_TCP || ip6->nexthdr == IPPROTO_UDP) && ls_is_own_ip6(ep, &ip6->saddr);
	}
	return 0;
}

/* The long line: every check, by copies, so that headers may lie anywhere in the packet. With `answers`, a question to
 * all about a known neighbour becomes its answer (LS_PEER, and `to` the endpoint that asked). */
LS_INLINE int ls_check(struct __sk_buff *skb, const struct ls_endpoint *ep, const struct ethhdr *eth, int answers,
		       struct ls_l3 *l3, struct ls_fdb *to)
{
	int is_broadcast = ls_is_broadcast(eth->h_dest);
	int is_group = ls_is_group(eth->h_dest);
	int verdict = ls_skip_tags(skb, eth->h_proto, l3);

	if (verdict < 0)
		return verdict;
	if (l3->proto_be == bpf_htons(ETH_P_IP))
		verdict = ls_check_ip4(skb, ep, l3->offset);
	else if (l3->proto_be == bpf_htons(ETH_P_IPV6))
		verdict = ls_check_ip6(skb, ep, l3, answers && is_group && !l3->tags, to);
	else if (l3->proto_be == bpf_htons(ETH_P_ARP))
		verdict = ls_check_arp(skb, ep, l3, answers && is_broadcast && !l3->tags, to);
	else
		verdict = LS_KERNEL;
	if (verdict == LS_FORWARD && l3->tags)
		verdict = LS_KERNEL;
	return verdict;
}

#endif
