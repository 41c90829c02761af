/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The headers up to TCP's and UDP's.
 */
#ifndef LINKSPAN_L4_H
#define LINKSPAN_L4_H

#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include "compiler.h"

#define LS_IP4_NO_OPTIONS 0x45 /* version 4, 5 words of header */

/* The length of an untagged packet's headers from the network header on, which each segment of a GSO packet gets; 0 where they
 * are not to be seen, or another protocol's. As much as an IPv4 header is known to be there behind `eth`. */
LS_INLINE __u32 ls_l4_headers(const struct __sk_buff *skb, const struct ethhdr *eth)
{
	const void *data_end = (void *)(long)skb->data_end;
	const struct iphdr *ip = (void *)(eth + 1);
	__u32 offset = sizeof(*ip);
	const struct tcphdr *tcp;
	__u8 proto = ip->protocol;

	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		proto = *((const __u8 *)ip + 6);
		offset = sizeof(struct ipv6hdr);
	} else if (*(const __u8 *)ip != LS_IP4_NO_OPTIONS) {
		return 0;
	}
	if (proto == IPPROTO_UDP)
		return offset + sizeof(struct udphdr);
	tcp = (const void *)ip + offset;
	if (proto != IPPROTO_TCP || (void *)(tcp + 1) > data_end)
		return 0;
	return offset + tcp->doff * 4;
}

#endif
