/*
 * primary.h
 *		Use that is sent to the server that writes it.
 */
#ifndef PRIMARY_H
#define PRIMARY_H

#include "usage.h"

extern bool primary_is_asked(void);
extern UsageEnd primary_send(const UsageCopy *copies, int count);
extern bool primary_has_sent(void);
extern int	primary_deliver(const UsageCopy *copies, int count);
extern void primary_delivered(void);

#endif
