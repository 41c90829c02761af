/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * VXLAN between hosts (RFC 7348): the outer headers, pushed and popped around a packet that keeps its segmentation (GSO)
 * and checksum offloads.
 */
#ifndef LINKSPAN_TUNNEL_H
#define LINKSPAN_TUNNEL_H

#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include "eth.h"

#define LS_VXLAN_PORT 4789
#define LS_VXLAN_HAS_VNI 0x08000000 /* the flags word, with the I flag alone */

#define LS_AF_INET 2
#define LS_AF_INET6 10

#define LS_TTL 64
#define LS_ECN_MASK 3
#define LS_ECN_CE 3
#define LS_PORTS_BITS 14 /* of source ports: 49152 to 65535 */

struct ls_vxlan {
	__be32 flags_be;
	__be32 vni_be; /* in the upper 24 bits */
};

/* What stands between the outer Ethernet header and the inner network header. */
struct ls_tunnel {
	struct udphdr udp;
	struct ls_vxlan vxlan;
	struct ethhdr eth;
} __attribute__((packed));
struct ls_tunnel4 {
	struct iphdr ip;
	struct ls_tunnel in;
} __attribute__((packed));
struct ls_tunnel6 {
	struct ipv6hdr ip6;
	struct ls_tunnel in;
} __attribute__((packed));

/* The families of the addresses in a node. */
LS_INLINE int ls_is_mapped(const __u8 *address)
{
	return ls_load64(address) == 0 && ls_load32(address + 8) == bpf_htonl(0xffff);
}

/* The byte that both versions of IP have their DSCP and ECN in. */
LS_INLINE __u8 ls_traffic_class(const void *ip, __be16 proto_be)
{
	return proto_be == bpf_htons(ETH_P_IP) ? *(const __u8 *)(ip + 1) : bpf_ntohs(ls_load16(ip)) >> 4;
}

/* RFC 1071. Words in memory order, so the sum is too. */
LS_INLINE __u16 ls_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

#endif
