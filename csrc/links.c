/* SPDX-License-Identifier: Apache-2.0 */
/* One RTM_GETLINK dump (rtnetlink(7)) parsed into an array of plain structs. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "native.h"

/* The kernel fills at most 32 KiB a message once it has seen a buffer as large. */
#define BUFFER_SIZE (64 * 1024)
/* Dumps that are begun again when devices come or go meanwhile. */
#define DUMP_ATTEMPTS 8

struct table {
	struct ls_link *links;
	int used, allocated;
};

static void copy_text(char *to, size_t size, const struct rtattr *attr)
{
	size_t length = strnlen(RTA_DATA(attr), RTA_PAYLOAD(attr));

	if (length >= size)
		length = size - 1;
	memcpy(to, RTA_DATA(attr), length);
	to[length] = '\0';
}

static __u32 get_u32(const struct rtattr *attr)
{
	__u32 value = 0;

	if (RTA_PAYLOAD(attr) >= sizeof(value))
		memcpy(&value, RTA_DATA(attr), sizeof(value));
	return value;
}

static void parse_kind(struct ls_link *link, const struct rtattr *info)
{
	int length = RTA_PAYLOAD(info);
	const struct rtattr *attr;

	for (attr = RTA_DATA(info); RTA_OK(attr, length); attr = RTA_NEXT(attr, length))
		if (attr->rta_type == IFLA_INFO_KIND)
			copy_text(link->kind, sizeof(link->kind), attr);
}

static void parse_stats(struct ls_link *link, const struct rtattr *attr)
{
	struct rtnl_link_stats64 stats; /* the attribute is aligned to 4 bytes only */
	size_t size = RTA_PAYLOAD(attr) < sizeof(stats) ? RTA_PAYLOAD(attr) : sizeof(stats);

	memset(&stats, 0, sizeof(stats));
	memcpy(&stats, RTA_DATA(attr), size);
	link->rx_packets = stats.rx_packets;
	link->rx_bytes = stats.rx_bytes;
	link->tx_packets = stats.tx_packets;
	link->tx_bytes = stats.tx_bytes;
}

static void parse_link(struct ls_link *link, const struct nlmsghdr *message)
{
	const struct ifinfomsg *head = NLMSG_DATA(message);
	int length = IFLA_PAYLOAD(message);
	const struct rtattr *attr;

	memset(link, 0, sizeof(*link));
	link->ifindex = head->ifi_index;
	link->flags = head->ifi_flags;
	for (attr = IFLA_RTA(head); RTA_OK(attr, length); attr = RTA_NEXT(attr, length)) {
		switch (attr->rta_type & NLA_TYPE_MASK) {
		case IFLA_IFNAME:
			copy_text(link->ifname, sizeof(link->ifname), attr);
			break;
		case IFLA_IFALIAS:
			copy_text(link->alias, sizeof(link->alias), attr);
			break;
		case IFLA_MASTER:
			link->master = get_u32(attr);
			break;
		case IFLA_LINK:
			link->peer = get_u32(attr);
			break;
		case IFLA_MTU:
			link->mtu = get_u32(attr);
			break;
		case IFLA_OPERSTATE:
			link->operstate = *(const __u8 *)RTA_DATA(attr);
			break;
		case IFLA_ADDRESS:
			link->mac_len = RTA_PAYLOAD(attr) < sizeof(link->mac) ? RTA_PAYLOAD(attr) : sizeof(link->mac);
			memcpy(link->mac, RTA_DATA(attr), link->mac_len);
			break;
		case IFLA_STATS64:
			parse_stats(link, attr);
			break;
		case IFLA_LINKINFO:
			parse_kind(link, attr);
			break;
		}
	}
}

static int append(struct table *table, const struct nlmsghdr *message)
{
	if (table->used == table->allocated) {
		int allocated = table->allocated ? 2 * table->allocated : 64;
		struct ls_link *links = realloc(table->links, allocated * sizeof(*links));

		if (!links)
			return -ENOMEM;
		table->links = links;
		table->allocated = allocated;
	}
	parse_link(&table->links[table->used++], message);
	return 0;
}

static int request_dump(int sock, __u32 seq)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg body;
	} request = {
		.header = {
			.nlmsg_len = sizeof(request),
			.nlmsg_type = RTM_GETLINK,
			.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
			.nlmsg_seq = seq,
		},
	};
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };

	if (sendto(sock, &request, sizeof(request), 0, (struct sockaddr *)&kernel, sizeof(kernel)) < 0)
		return -errno;
	return 0;
}

/* Returns 0 when the dump is complete, 1 when it is complete but devices came or went meanwhile. */
static int receive_dump(int sock, __u32 seq, char *buffer, struct table *table)
{
	int interrupted = 0, rc;

	for (;;) {
		ssize_t received = recv(sock, buffer, BUFFER_SIZE, MSG_TRUNC);
		const struct nlmsghdr *message;
		size_t length;

		if (received < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (received > BUFFER_SIZE)
			return -EMSGSIZE;
		length = received;
		for (message = (struct nlmsghdr *)buffer; NLMSG_OK(message, length);
		     message = NLMSG_NEXT(message, length)) {
			if (message->nlmsg_seq != seq) /* left over from an earlier request on this socket */
				continue;
			if (message->nlmsg_flags & NLM_F_DUMP_INTR)
				interrupted = 1;
			if (message->nlmsg_type == NLMSG_DONE)
				return interrupted;
			if (message->nlmsg_type == NLMSG_ERROR)
				return ((const struct nlmsgerr *)NLMSG_DATA(message))->error ?: -EPROTO;
			if (message->nlmsg_type != RTM_NEWLINK)
				continue;
			rc = append(table, message);
			if (rc < 0)
				return rc;
		}
	}
}

int ls_links_dump(int sock, struct ls_link **links)
{
	static atomic_uint next_seq;
	int own = sock < 0 ? socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE) : -1;
	struct table table = { 0 };
	char *buffer = NULL;
	int attempt, rc = 1;

	*links = NULL;
	if (sock < 0 && own < 0)
		return -errno;
	buffer = malloc(BUFFER_SIZE);
	if (!buffer)
		rc = -ENOMEM;
	for (attempt = 0; attempt < DUMP_ATTEMPTS && rc == 1; attempt++) {
		__u32 seq = atomic_fetch_add(&next_seq, 1) + 1;

		table.used = 0;
		rc = request_dump(sock < 0 ? own : sock, seq);
		if (rc == 0)
			rc = receive_dump(sock < 0 ? own : sock, seq, buffer, &table);
	}
	free(buffer);
	if (own >= 0)
		close(own);
	if (rc < 0) {
		free(table.links);
		return rc;
	}
	*links = table.links;
	return table.used;
}

void ls_links_free(struct ls_link *links)
{
	free(links);
}
