/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the maps said of the last packets that came in from other hosts, as flow.h has it of what endpoints send.
 */
#ifndef LINKSPAN_ARRIVAL_H
#define LINKSPAN_ARRIVAL_H

#include "flow.h"

/* What tells an arrival from others, in words as they lie in the packet. */
struct ls_arrival_key {
	__u64 from[2]; /* of an IPv4 address in VXLAN's outer header: 0, and the address */
	__u64 at[2];
	__u64 macs; /* the destination, and the first third of the source; inner ones where there are */
	__u32 macs_rest;
	__be32 vni_be; /* LS_NO_VXLAN where there is none */
};

/* Bits that a VXLAN header which is looked at has not got. */
#define LS_NO_VXLAN bpf_htonl(0xff)

struct ls_arrival {
	__u64 epoch;
	struct ls_arrival_key key;
	struct ls_fdb to;	 /* ifindex 0: the kernel's */
	__u8 macs[2 * ETH_ALEN]; /* of the endpoints, destination first; without VXLAN only */
};
LS_PRIVATE_MAP("percpu_array", __u32, struct ls_arrival, arrivals, 1 << LS_FLOW_BITS, 0);

LS_INLINE int ls_is_arrival(const struct ls_arrival *known, const struct ls_arrival_key *key, __u64 now)
{
	return !((known->epoch ^ now) | (known->key.from[0] ^ key->from[0]) | (known->key.from[1] ^ key->from[1]) |
		 (known->key.at[0] ^ key->at[0]) | (known->key.at[1] ^ key->at[1]) | (known->key.macs ^ key->macs) |
		 (known->key.macs_rest ^ key->macs_rest) | (known->key.vni_be ^ key->vni_be));
}

/* Makes the place hold a packet that is the kernel's. */
LS_INLINE void ls_arrival_keep(struct ls_arrival *arrival, const struct ls_arrival_key *key, __u64 now)
{
	arrival->epoch = now;
	arrival->key = *key;
	arrival->to.ifindex = 0;
}

#endif
