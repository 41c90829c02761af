/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Whether a packet is short enough for the endpoint that the fast path takes it to.
 */
#ifndef LINKSPAN_FITS_H
#define LINKSPAN_FITS_H

#include <uapi/linux/if_ether.h>
#include "compiler.h"

/* Not checked against the receiver's MTU: no device that carries IPv6 has a smaller one (RFC 8200, 5). To an IPv4-only
 * device with a smaller one a longer packet gets through where a bridge would drop it; the receiver takes it. */
#define LS_FITS_ALWAYS (1280 + ETH_HLEN)

/* A bridge refuses what is longer than the port's MTU, and redirect_peer does not look (since Linux 5.12). GSO
 * packets are cut to fit by whoever sends them on. `overhead` bytes will be taken off the packet. */
LS_INLINE int ls_fits(struct __sk_buff *skb, __u32 ifindex, __u32 overhead)
{
	__u32 mtu = 0;

	return likely(skb->len <= LS_FITS_ALWAYS + overhead) || skb->gso_size ||
	       bpf_check_mtu(skb, ifindex, &mtu, -(__s32)overhead, 0) == 0;
}

#endif
