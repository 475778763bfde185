/*
 * addr.c
 *		Fuzzes the parser of a client's address; it is static, so the file is
 *		included.
 */
#include "server.h"

#include "../../src/key/client_addr.c"

/* Parses a copy without a byte to spare. */
static bool
parse_copy(const char *text, size_t len, inet_struct *address)
{
	char	   *copy = malloc(len + 1);
	bool		result;

	memcpy(copy, text, len);
	copy[len] = '\0';
	memset(address, 0, sizeof(*address));
	result = parse(copy, address);
	free(copy);
	return result;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	const char *text = (const char *) data;
	inet_struct address;
	inet_struct again;
	char		shown[INET6_ADDRSTRLEN];
	bool		is_v4;

	/* A text has no zero byte. */
	if (size > ADDR_MAX_LEN || memchr(data, 0, size) != NULL ||
		!parse_copy(text, size, &address))
		return 0;
	is_v4 = address.family == PGSQL_AF_INET;
	HOLDS(is_v4 || address.family == PGSQL_AF_INET6);
	HOLDS(address.bits == (is_v4 ? 32 : 128));
	for (size_t i = 0; i < size; i++)
		HOLDS(strchr(ZONE_CHARS " \t[]:%", text[i]) != NULL);
	/* The address as PostgreSQL shows it is the same address. */
	HOLDS(inet_ntop(is_v4 ? AF_INET : AF_INET6, address.ipaddr, shown, sizeof(shown)) != NULL);
	HOLDS(parse_copy(shown, strlen(shown), &again));
	HOLDS(memcmp(&address, &again, sizeof(address)) == 0);
	/* Two of it are a list, with whatever between them. */
	if (size * 2 + 1 <= ADDR_MAX_LEN)
	{
		char		list[ADDR_MAX_LEN];

		for (const char *between = ", \t;"; *between != '\0'; between++)
		{
			memcpy(list, shown, strlen(shown));
			list[strlen(shown)] = *between;
			memcpy(list + strlen(shown) + 1, text, size);
			HOLDS(!parse_copy(list, strlen(shown) + 1 + size, &again));
		}
	}
	return 0;
}
