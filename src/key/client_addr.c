/*
 * client_addr.c
 *		The address of a client, as a proxy tells it in a header.
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "access/detoast.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/inet.h"

#include "base/grant.h"
#include "compat.h"

/* More than the longest address, with brackets, zone, port and blanks. */
#define ADDR_MAX_LEN 128

#define PORT_MAX 65535
#define PORT_MAX_LEN 5

/* Of the name of a network interface. */
#define ZONE_CHARS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

static bool parse(char *at, inet_struct *address);

PG_FUNCTION_INFO_V1(rk_apikeys_client_addr);

/*
 * rk_apikeys.client_addr(header text) -> inet
 *
 * Return the address that a header's value names, as a host, unmapped; NULL for
 * anything else, a list of addresses too.  Raise nothing.
 */
Datum
rk_apikeys_client_addr(PG_FUNCTION_ARGS)
{
	char		work[ADDR_MAX_LEN + 1];
	inet		address;
	inet	   *host;
	text	   *header;
	Size		len;

	if (toast_raw_datum_size(PG_GETARG_DATUM(0)) - VARHDRSZ > ADDR_MAX_LEN)
		PG_RETURN_NULL();
	header = PG_GETARG_TEXT_PP(0);
	len = VARSIZE_ANY_EXHDR(header);
	memcpy(work, VARDATA_ANY(header), len);
	work[len] = '\0';
	memset(&address, 0, sizeof(address));
	if (!parse(work, &address.inet_data))
		PG_RETURN_NULL();
	SET_INET_VARSIZE(&address);
	host = palloc0(sizeof(inet));
	grant_host(&address, &host->inet_data);
	SET_INET_VARSIZE(host);
	PG_RETURN_INET_P(host);
}

/*
 * Parse an address: an IPv4 address, perhaps with a port, or an IPv6 address,
 * perhaps with a zone, in brackets, and behind these with a port.  Blanks around
 * it do not count.  The text is changed.  Return false for anything else.
 */
static bool
parse(char *at, inet_struct *address)
{
	char	   *end;
	char	   *colon;
	char	   *port = NULL;
	bool		bracketed = false;

	at += strspn(at, " \t");
	end = at + strlen(at);
	while (end > at && (end[-1] == ' ' || end[-1] == '\t'))
		*--end = '\0';

	if (*at == '[')
	{
		end = strchr(at, ']');
		if (end == NULL || (end[1] != '\0' && end[1] != ':'))
			return false;
		if (end[1] == ':')
			port = end + 2;
		*end = '\0';
		at++;
		bracketed = true;
	}
	else if ((colon = strchr(at, ':')) != NULL && strchr(colon + 1, ':') == NULL)
	{
		*colon = '\0';
		port = colon + 1;
	}
	if (port != NULL && (*port == '\0' || strlen(port) > PORT_MAX_LEN ||
						 strspn(port, "0123456789") != strlen(port) ||
						 strtol(port, NULL, 10) > PORT_MAX))
		return false;

	if (strchr(at, ':') == NULL)
	{
		address->family = PGSQL_AF_INET;
		address->bits = 32;
		return !bracketed && inet_pton(AF_INET, at, address->ipaddr) == 1;
	}
	end = strchr(at, '%');
	if (end != NULL)
	{
		if (end[1] == '\0' || end[1 + strspn(end + 1, ZONE_CHARS)] != '\0')
			return false;
		*end = '\0';
	}
	address->family = PGSQL_AF_INET6;
	address->bits = 128;
	return inet_pton(AF_INET6, at, address->ipaddr) == 1;
}
