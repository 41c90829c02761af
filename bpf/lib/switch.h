/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the programs of a switched parent share: macvlan stations that are veth pairs, for which the programs do what a
 * macvlan device does. A bridge without addresses, whose ports are the host ends, copies group packets to all of them.
 */
#ifndef LINKSPAN_SWITCH_H
#define LINKSPAN_SWITCH_H

#include "eth.h"
#include "parent.h"

/* The bridge that copies packets for groups to the stations of a parent; 0 if there is none. */
LS_INLINE __u32 ls_flooder(__u32 parent)
{
	struct ls_fdb_key key = { .segment = LS_PARENT_SEGMENT | parent };
	const struct ls_fdb *found;

	__builtin_memset(key.mac, 0xff, ETH_ALEN);
	found = fdb.lookup(&key);
	return found ? found->ifindex : 0;
}

/* The station with that MAC on the parent, or 0. */
LS_INLINE const struct ls_fdb *ls_switch_port(__u32 segment, const __u8 *mac)
{
	struct ls_fdb_key key = { .segment = segment };

	__builtin_memcpy(key.mac, mac, ETH_ALEN);
	return fdb.lookup(&key);
}

#endif
