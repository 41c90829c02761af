/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the two programs of a macvlan parent share: whose MAC is whose, and the notes by which the one at the egress
 * tells the one at the ingress what a packet is that it sends there.
 */
#ifndef LINKSPAN_PARENT_H
#define LINKSPAN_PARENT_H

#include "eth.h"
#include "flow.h"

/* Slot of what is no station: past the end of ep_counters, so nothing is counted for it. */
#define LS_NO_SLOT 0xffffffff

/* Notes in skb->tc_index, which outlives a redirect and is 0 in what comes from a wire. A sandbox can write it too, but
 * only into packets of its own that macvlan takes to another sandbox, and those are known by their MACs. */
enum ls_note {
	LS_NOTE_SHORT = 0x4c51, /* unicast between the host and a station, counted */
	LS_NOTE_HOST = 0x4c52,  /* copy of a station's group packet, for the host alone */
	LS_NOTE_ALL = 0x4c53,   /* copy of the host's group packet, for all stations and not the host */
};

LS_INLINE const struct ls_endpoint *ls_station(__u32 ifindex, const __u8 *mac)
{
	struct ls_station_key key = { .ifindex = ifindex };

	__builtin_memcpy(key.mac, mac, ETH_ALEN);
	return stations.lookup(&key);
}

LS_INLINE struct ls_flow *ls_parent_place(const struct __sk_buff *skb, __u32 ifindex)
{
	const struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return 0;
	return ls_flow_place(skb, ifindex ^ ls_load32(eth->h_source + 2));
}

/* Starts the flow of a packet that is no station's, and for none. */
LS_INLINE void ls_flow_begin(struct ls_flow *flow, const struct ethhdr *eth, __u32 ifindex, __u64 now)
{
	const struct ls_fdb nowhere = { .slot = LS_NO_SLOT };
	const struct ls_endpoint nobody = { .slot = LS_NO_SLOT };

	ls_flow_keep(flow, ifindex, now, eth->h_dest, &nobody, &nowhere);
	__builtin_memcpy(flow->endpoint.mac, eth->h_source, ETH_ALEN);
}

/* Takes the note off, and with it the mark, which meant something in the sender's namespace. */
LS_INLINE void ls_arrive(struct __sk_buff *skb)
{
	skb->tc_index = 0;
	skb->mark = 0;
}

/* Groups that end at the next device (01:80:c2:00:00:0x: IEEE 802.1Q, 8.6.3; LLDP, LACP, 802.1X) are for what is at the
 * other end of the wire, as with a bridge. */
LS_INLINE int ls_is_for_wire(const __u8 *mac)
{
	return ls_load32(mac) == bpf_htonl(0x0180c200) && (ls_load16(mac + 4) & bpf_htons(0xfff0)) == 0;
}

#endif
