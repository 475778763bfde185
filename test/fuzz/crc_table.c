/*
 * crc_table.c
 *		The server's table for CRC-32 (IEEE 802.3), computed: no library has it.
 */
#include <stdint.h>

uint32_t	pg_crc32_table[256];

__attribute__((constructor)) static void
compute(void)
{
	for (uint32_t i = 0; i < 256; i++)
	{
		uint32_t	crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = crc & 1 ? crc >> 1 ^ 0xEDB88320 : crc >> 1;
		pg_crc32_table[i] = crc;
	}
}
